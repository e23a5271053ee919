"""The fields of a JSON text: every value that is no object or list, with the path to it.

    {"a": {"b": 1}}        a.b = 1
    {"a": [2, 3]}          a[] = 2, a[] = 3     in any order, each as often as it is there
    {"a": [{"b": 1}]}      a[0].b = 1           objects and lists in a list keep their place
    {"a": {}}              a = {}

1, 1.0 and 10e-1 are equal; 1, "1" and true are not. A key that is there twice gives two fields.
"""

import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

Path = tuple[str | int, ...]
Field = tuple[Path, str, Any]
"""(path, type, value)."""


@dataclass(frozen=True)
class Parsed:
    """value: text, Decimal, bool, None, a list, or an object as a `Pairs`."""

    value: Any


@dataclass(frozen=True)
class Pairs:
    """The members of an object as they are written, duplicate keys too."""

    members: list[tuple[str, Any]]


def parse(text: str) -> Parsed | None:
    """The JSON value of a text; None: it is no JSON."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=Pairs,
            parse_int=Decimal,
            parse_float=Decimal,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError, InvalidOperation):
        return None
    return Parsed(value)


def fields_of(value: Any) -> Counter[Field]:
    """How often each field is in a parsed value."""
    fields: Counter[Field] = Counter()
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        match item:
            case Pairs(members) if members:
                waiting += [((*path, f".{key}"), own) for key, own in members]
            case list() if item:
                waiting += [
                    ((*path, i if isinstance(own, Pairs | list) else "[]"), own)
                    for i, own in enumerate(item)
                ]
            case Pairs():
                fields[path, "object", None] += 1
            case list():
                fields[path, "list", None] += 1
            case _:
                fields[path, type(item).__name__, item] += 1
    return fields


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
