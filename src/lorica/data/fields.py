"""Typed values out of a row's fields. Whatever has another type is a `BadRow`."""

import json
import math
from typing import Any


class BadRow(Exception):
    """The reason why a row cannot be used. The caller adds the file and line, and collects them."""

    def __init__(self, reason: str, fix: str | None = None):
        super().__init__(reason)
        self.fix = fix


def text_field(fields: dict[str, Any], name: str) -> str:
    """The text of a field.

    Raises: BadRow if it is missing, has another type, or cannot be written as UTF-8.
    """
    if name not in fields:
        raise BadRow(f"has no {name}")
    return as_text(fields[name], name)


def as_text(value: Any, name: str) -> str:
    match value:
        case str():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:  # "\ud800" is legal JSON, and no character
                raise BadRow(
                    f"{name} has half a surrogate pair at character {error.start}"
                ) from error
            return value
        case _:
            raise BadRow(f"{name} is {type(value).__name__}, not text")


def as_list(value: Any) -> list[Any] | None:
    """`value` if it is a list, otherwise None."""
    match value:
        case list():
            return value
        case _:
            return None


def as_object(value: Any) -> dict[str, Any] | None:
    """`value` if it is a JSON object, otherwise None."""
    match value:
        case dict():
            return value
        case _:
            return None


def answer_texts(fields: dict[str, Any], name: str) -> list[str]:
    """The answers of a row: a text or a list of texts, then the texts of `references`.

    The first is learned. No text is in the list twice.
    Raises: BadRow if an answer is not text, or there is none.
    """
    value, references = fields.get(name), fields.get("references")
    texts = as_list(value)
    texts = [text_field(fields, name)] if texts is None else list(texts)
    if references is not None:
        more = as_list(references)
        texts += [references] if more is None else more
    if not texts:
        raise BadRow(f"{name} is an empty list")
    return list(dict.fromkeys(as_text(text, name) for text in texts))


def condition_text(fields: dict[str, Any]) -> str | None:
    """The row's condition as text; a list of numbers as JSON. None: the row has none.

    Raises: BadRow if it is not text, a whole number or a list of finite numbers.
    """
    value = fields.get("condition")
    match value:
        case None:
            return None
        case bool():
            raise BadRow("condition is bool, not text")
        case int():
            return str(value)
        case list():
            if not value or not all(type(n) in (int, float) and math.isfinite(n) for n in value):
                raise BadRow("condition is a list, but not of finite numbers")
            return json.dumps([float(n) for n in value])
        case _:
            if not text_field(fields, "condition").strip():
                raise BadRow("condition is empty")
            return value
