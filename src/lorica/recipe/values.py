"""One value of a setting: its type in words, and its parsing from the text of a flag."""

import dataclasses
import json
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lorica.errors import closest
from lorica.recipe.yaml_file import parse_inline, parse_scalar

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_NAMES |= {types.NoneType: "null"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe_type(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words: "a whole number (at least 1) or null". metadata: of its Annotated."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe_type(args[0], [*args[1:], *metadata])
    if origin is None and as_model(kind) is not None:
        return "a mapping of settings, or one word"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        words = [describe_type(a, metadata if i == 0 else ()) for i, a in enumerate(args)]
        return " or ".join(words)
    if origin in (list, tuple, set, frozenset):
        inner = args[0] if args else Any
        words = describe_type(inner).removeprefix("one of ")
        return f"a list of: {words}" if get_origin(inner) is Literal else f"a list of {words}"
    if origin is dict:
        values = args[1]
        free = "a mapping, or one word"
        return free if values is Any else f"a mapping of names to {describe_type(values)}"
    limits = _limits(metadata)
    bounds = [f"{words} {limits[name]:g}" for name, words in _LIMITS.items() if name in limits]
    bounds += ["not empty"] if "min_length" in limits else []
    word = _NAMES.get(kind) or (kind.__name__ if isinstance(kind, type) else str(kind))
    return f"{word} ({' and '.join(bounds)})" if bounds else word


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    """Limits by name, from metadata such as Field(ge=1) or Bounds(ge=1, lt=9)."""
    limits: dict[str, Any] = {}
    for item in metadata:
        match item:
            case FieldInfo():
                limits |= _limits(item.metadata)
            case _ if dataclasses.is_dataclass(item) and not isinstance(item, type):
                limits |= {k: v for k, v in dataclasses.asdict(item).items() if v is not None}
    return limits


def as_model(kind: Any) -> type[BaseModel] | None:
    """`kind` if it is a class of settings, also one that may be null; otherwise None."""
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(kind) if arg is not types.NoneType]
        kind = kinds[0] if len(kinds) == 1 else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def format_value(value: Any) -> str:
    """A value as a recipe writes it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest_choice(kind: Any, value: Any) -> str:
    """The end of a message on a wrong word: the allowed word that is closest."""
    allowed = choices(kind)
    match value:
        case list():
            words = value
        case _:
            words = [value]
    wrong = next((w for w in words if type(w) is str and w not in allowed), "")
    near = closest(wrong, allowed).split(", ")[0] if wrong and allowed else ""
    return f"; closest {near}" if near in allowed else ""


def choices(kind: Any) -> list[str]:
    """The words that a type allows, alone or in a list."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return [str(arg) for arg in args]
    return [word for arg in args for word in choices(arg)]


def parse_strict(kind: Any, value: Any) -> Any:
    """`value` as `kind`. Raises: ValidationError if it has another type, or is out of range."""
    return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)


def is_valid(kind: Any, value: Any) -> bool:
    """Whether `value` has this type, and is within its limits."""
    try:
        parse_strict(kind, value)
    except ValidationError:
        return False
    return True


def parse_flag(kind: Any, value: Any) -> Any:
    """The text of a flag (or a list of texts: a repeated flag) as a value of `kind`.

    The first reading that is valid is taken: a number, true, false, null or JSON; a
    comma-separated list; the text itself; a list of one. If none is valid, the first reading is
    returned, and validation refuses it. A list or a mapping in JSON is not taken apart at commas.
    """
    match value:
        case {**items}:
            inner = get_args(kind)[1] if get_origin(kind) is dict else Any
            return {key: parse_flag(inner, item) for key, item in items.items()}
        case list() if all(type(item) is str for item in value):
            readings = [[_read(item) for item in value], value]
        case str():
            readings = _readings(value)
            if isinstance(readings[0], list | dict) and as_model(kind) is not None:
                return readings[0]  # what is wrong in it is said, not that there is no such file
        case _:
            return value
    return next((r for r in readings if is_valid(kind, r)), readings[0])


def _readings(text: str) -> list[Any]:
    """What the text of a flag can mean, the likeliest first."""
    words = [part.strip() for part in text.split(",")]
    as_list = [[parse_scalar(word) for word in words], words]
    parsed = _read(text)
    if isinstance(parsed, list | dict):
        return [parsed, text]  # text: of a template
    first = [parsed] if parsed != text else []
    return [*first, *(as_list if "," in text else []), text, *as_list]


def _read(text: str) -> Any:
    if text[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return parse_inline(text)
    if text.lower() in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(text.lower())
    return parse_scalar(text)
