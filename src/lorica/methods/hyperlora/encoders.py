"""Conditions as numbers that a network reads: learned vectors of names, or vectors that are given.

task       one name, one vector            pair  two languages, a vector each
embedding  its numbers                     text  what the base makes of it (core.condition)

C conditions   H half of the network's width   N numbers of a given vector
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lorica.errors import ConfigError, closest, listed

Kind = Literal["task", "pair", "embedding", "text"]
KINDS = get_args(Kind)


def pair_of(condition: str) -> tuple[str, str]:
    """The two languages of "en-fr". Raises: ConfigError if there are not two."""
    parts = tuple(condition.split("-"))
    if len(parts) != 2 or "" in parts:
        raise ConfigError(
            f"{condition!r} is no pair of languages.",
            fix='write it "en-fr", or take condition: task',
        )
    return parts


def numbers(condition: str, width: int | None = None) -> list[float]:
    """An embedding from its JSON. Raises: ConfigError if it is none, or has not `width` numbers."""
    try:
        found = json.loads(condition)
    except (ValueError, RecursionError):
        found = None
    plain = isinstance(found, list) and all(type(n) in (int, float) for n in found)
    if not plain or not found or not all(map(math.isfinite, found)):
        raise ConfigError(
            f"{condition[:40]!r} is no embedding.", fix="write a list of numbers: [0.1, -2.3]"
        )
    if width not in (None, len(found)):
        raise ConfigError(
            f"an embedding has {len(found)} numbers; this adapter reads {width}.",
            fix="make it as those of the training rows were made",
        )
    return [float(n) for n in found]


def words(kind: Kind, conditions: Iterable[str]) -> list[str]:
    """What gets a learned vector: the conditions, or the languages of pairs. Sorted."""
    split = pair_of if kind == "pair" else lambda condition: (condition,)
    return sorted({word for condition in conditions for word in split(condition)})


def check_known(conditions: Iterable[str], known: Sequence[str]) -> None:
    """Raises: ConfigError if a condition is not one of `known`."""
    if strange := sorted(set(conditions) - set(known)):
        raise ConfigError(
            f"the adapter does not know the condition {listed(map(repr, strange))}.",
            closest=closest(strange[0], known),
            known=listed(known, 12),
            fix="name one that it was trained on",
        )


def settled(
    kind: Kind, conditions: Sequence[str], known: Sequence[str]
) -> tuple[tuple[str, ...], int | None]:
    """What training rows with `conditions` make known: (conditions, width of embeddings).

    known: what the settings name already. It may have more pairs than the rows, of languages
    that the rows have; every other one would never be trained.

    Raises: ConfigError if they do not fit.
    """
    if kind == "embedding":
        width = len(numbers(conditions[0]))
        for condition in set(conditions):
            numbers(condition, width)
        return (), width
    if not known:
        words(kind, conditions)
        return tuple(sorted(set(conditions))), None
    check_known(conditions, known)
    if never := sorted(set(words(kind, known)) - set(words(kind, conditions))):
        raise ConfigError(
            f"no training row has the condition {listed(map(repr, never))}.",
            fix="take it out of the conditions that are known",
        )
    return tuple(known), None


class Names(nn.Module):
    """Tasks and pairs: (C, 1) or (C, 2) numbers of words -> (C, H)."""

    def __init__(self, kind: Kind, known: Sequence[str], half: int):
        super().__init__()
        self.kind: Kind = kind
        self.known = tuple(known)
        self.place = {word: i for i, word in enumerate(words(kind, known))}
        self.vectors = nn.Embedding(len(self.place), half // 2 if kind == "pair" else half)

    def codes(self, conditions: Sequence[str]) -> Tensor:
        check_known(conditions, self.known)
        split = [pair_of(c) if self.kind == "pair" else (c,) for c in conditions]
        return torch.tensor([[self.place[word] for word in parts] for parts in split])

    def forward(self, codes: Tensor) -> Tensor:
        return self.vectors(codes).flatten(1)


class Vectors(nn.Module):
    """Embeddings: (C, N) numbers -> (C, H)."""

    def __init__(self, width: int, half: int):
        super().__init__()
        self.width = width
        self.map = nn.Linear(width, half)

    def codes(self, conditions: Sequence[str]) -> Tensor:
        return torch.tensor([numbers(condition, self.width) for condition in conditions])

    def forward(self, codes: Tensor) -> Tensor:
        return self.map(codes.to(self.map.weight))


class Texts(Vectors):
    """Texts by the vectors that the base makes of them; a row of zeros has none yet."""

    table: Tensor

    def __init__(self, known: Sequence[str], width: int, half: int):
        super().__init__(width, half)
        self.place = {text: i for i, text in enumerate(known)}
        self.others: dict[str, Tensor] = {}
        self.register_buffer("table", torch.zeros(len(known), width))

    def missing(self, conditions: Sequence[str]) -> list[str]:
        """Those that have no vector yet."""
        return [text for text in dict.fromkeys(conditions) if self._of(text) is None]

    def take(self, vectors: Mapping[str, Tensor]) -> list[str]:
        """Keep the vectors (N,). Returns: the texts that are none of the known."""
        for text, vector in vectors.items():
            if text in self.place:
                self.table[self.place[text]] = vector
            else:
                self.others[text] = vector
        return [text for text in vectors if text not in self.place]

    def codes(self, conditions: Sequence[str]) -> Tensor:
        if missing := self.missing(conditions):
            raise ConfigError(
                f"the base has not read the condition {listed(map(repr, missing))}.",
                fix="lorica.core.condition.describe(model, tokenizer, [...]) reads it",
            )
        return torch.stack([self._of(text) for text in conditions])  # type: ignore[misc]

    def _of(self, text: str) -> Tensor | None:
        if text in self.place:
            row = self.table[self.place[text]]
            return row if row.any() else None
        return self.others.get(text)


def encoder(
    kind: Kind, known: Sequence[str], width: int | None, half: int
) -> Names | Vectors | Texts:
    """The encoder of `kind`. Raises: ConfigError if what it must know is not known."""
    if kind != "embedding" and not known:
        raise ConfigError(f"no condition is known that is a {kind}.", fix="conditions=[...]")
    if kind in ("task", "pair"):
        return Names(kind, known, half)
    if width is None:
        raise ConfigError(
            f"the width of an {kind} is not known."
            if kind == "embedding"
            else "the width of the base's hidden states is not known.",
            fix="width=N, the numbers of an embedding; for texts, the base's hidden_size",
        )
    return Vectors(width, half) if kind == "embedding" else Texts(known, width, half)
