"""Conditions as texts: their kinds, how they are parsed, and which of them an adapter knows."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from lorica.errors import ConfigError, closest, listed

Kind = Literal["task", "pair", "embedding", "text"]


def pair_of(condition: str) -> tuple[str, str]:
    """The two languages of "en-fr". Raises: ConfigError if there are not two."""
    parts = tuple(condition.split("-"))
    if len(parts) != 2 or "" in parts:
        raise ConfigError(
            f"{condition!r} is no pair of languages.",
            fix='write it like "en-fr", or set condition: task',
        )
    return parts


def parse_embedding(condition: str, width: int | None = None) -> list[float]:
    """The numbers of an embedding, from JSON.

    Raises: ConfigError if it is no list of finite numbers, or its length is not `width`.
    """
    try:
        numbers = json.loads(condition)
    except (ValueError, RecursionError):
        numbers = None
    are_numbers = isinstance(numbers, list) and all(type(n) in (int, float) for n in numbers)
    if not are_numbers or not numbers or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{condition[:40]!r} is no embedding.", fix="write a list of numbers: [0.1, -2.3]"
        )
    if width not in (None, len(numbers)):
        raise ConfigError(
            f"an embedding has {len(numbers)} numbers; this adapter reads {width}.",
            fix="compute it as those of the training rows",
        )
    return [float(n) for n in numbers]


def words(kind: Kind, conditions: Iterable[str]) -> list[str]:
    """What gets a learned vector, sorted: the conditions, or the languages of pairs."""
    split = pair_of if kind == "pair" else lambda condition: (condition,)
    return sorted({word for condition in conditions for word in split(condition)})


def check_known(conditions: Iterable[str], known: Sequence[str]) -> None:
    """Raises: ConfigError if a condition is not one of `known`."""
    if unknown := sorted(set(conditions) - set(known)):
        raise ConfigError(
            f"the adapter does not know the condition {listed(map(repr, unknown))}.",
            closest=closest(unknown[0], known),
            known=listed(known, 12),
            fix="name one that it was trained on",
        )


def check_training_conditions(
    kind: Kind, conditions: Sequence[str], known: Sequence[str]
) -> tuple[tuple[str, ...], int | None]:
    """(known conditions, width of embeddings) of an adapter for rows with `conditions`.

    known: those that the settings name. They may include pairs that no row has, of languages that
    the rows have. Any other condition without a row would never be trained.

    Raises: ConfigError if the rows have a condition that is not known, or a known one has no row.
    """
    if kind == "embedding":
        width = len(parse_embedding(conditions[0]))
        for condition in set(conditions):
            parse_embedding(condition, width)
        return (), width
    if not known:
        words(kind, conditions)
        return tuple(sorted(set(conditions))), None
    check_known(conditions, known)
    if untrained := sorted(set(words(kind, known)) - set(words(kind, conditions))):
        raise ConfigError(
            f"no training row has the condition {listed(map(repr, untrained))}.",
            fix="remove it from method.conditions",
        )
    return tuple(known), None
