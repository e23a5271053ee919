"""One value and its type: judged, told in words, or read from a flag's text."""

import json
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lorica.errors import closest
from lorica.recipe.yaml_file import parse_inline, parse_scalar

_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_PLAIN |= {types.NoneType: "null"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe_type(kind: Any, limits: Iterable[Any] = ()) -> str:
    """What a value of `kind` is, in words: "a whole number, at least 1, or null"."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe_type(args[0], [*args[1:], *limits])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping of settings, or one word"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        rest = [describe_type(a, limits if i == 0 else ()) for i, a in enumerate(args)]
        return " or ".join(rest)
    if origin in (list, tuple, set, frozenset):
        inner = args[0] if args else Any
        words = describe_type(inner).removeprefix("one of ")
        return f"a list of {words}" if get_origin(inner) is not Literal else f"a list of: {words}"
    if origin is dict:
        return (
            f"a mapping of names to {describe_type(args[1])}"
            if args[1:] != (Any,)
            else "a mapping, or one word"
        )
    bounds = [
        f"{_LIMITS[k]} {getattr(m, k):g}" for m in _unpacked(limits) for k in _LIMITS if _has(m, k)
    ] + ["not empty" for m in _unpacked(limits) if _has(m, "min_length")]
    word = _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
    return f"{word} ({' and '.join(bounds)})" if bounds else word


def _has(limit: Any, name: str) -> bool:
    return getattr(limit, name, None) is not None  # pydantic's and annotated_types' classes


def _unpacked(limits: Iterable[Any]) -> list[Any]:
    """The limits, with those inside a Field(...) of an Annotated."""
    return [
        m for limit in limits for m in (limit.metadata if isinstance(limit, FieldInfo) else [limit])
    ]


def format_value(value: Any) -> str:
    """A value as a recipe writes it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest_choice(kind: Any, value: Any) -> str:
    """The end of a sentence on a wrong word: the one that was meant, of those that are allowed."""
    words = value if isinstance(value, list) else [value]
    wrong = next((w for w in words if isinstance(w, str) and w not in choices(kind)), "")
    near = closest(wrong, choices(kind)).split(", ")[0] if wrong and choices(kind) else ""
    return f"; closest {near}" if near in choices(kind) else ""


def choices(kind: Any) -> list[str]:
    """The words that a type allows, one of which stands in it or in a list of it."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return [str(arg) for arg in args]
    return [word for arg in args for word in choices(arg)]


def parse_strict(kind: Any, value: Any) -> Any:
    """`value` as `kind`. Raises: ValidationError if it is of another type or out of range."""
    return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)


def is_valid(kind: Any, value: Any) -> bool:
    """Whether `value` is of this type, and within its limits."""
    try:
        parse_strict(kind, value)
    except ValidationError:
        return False
    return True


def parse_flag(kind: Any, value: Any) -> Any:
    """Text of a flag (or a list of texts: a flag given repeatedly) as a value of `kind`.

    The first reading that fits is taken: number, true, false, null or JSON; a comma-separated
    list; the text itself; a list of one. Where none fits, the first, for the judge to refuse.
    """
    if isinstance(value, Mapping):
        inner = get_args(kind)[1] if get_origin(kind) is dict else Any
        return {key: parse_flag(inner, item) for key, item in value.items()}
    readings = [_read(value)] if isinstance(value, str) else []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        readings = [[_read(item) for item in value], value]
    elif isinstance(value, str):
        plain = [part.strip() for part in value.split(",")]
        several = [[parse_scalar(part) for part in plain], plain]
        readings = [r for r in readings if r != value]
        readings += [*(several if "," in value else []), value, *several]
    else:
        return value
    return next((r for r in readings if is_valid(kind, r)), readings[0])


def _read(text: str) -> Any:
    if text[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return parse_inline(text)
    if text.lower() in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(text.lower())
    return parse_scalar(text)
