"""Types and bounds of settings: declared beside each field, checked when the settings are made.

    r: Annotated[int, Bounds(ge=1)] = 8
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    mode: Literal["decrease", "increase"] = "decrease"

The names of the bounds are those of annotated_types, so that the messages of recipes state them
as well. Whole numbers, numbers, switches, Literals and None are checked, other types are not.
"""

import math
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lorica.errors import ConfigError, closest
from lorica.registry import Named

MAX_RANK = 4096
"""Ranks up to this are accepted on any layer (VeRA's default is 256, on small layers too)."""
WORDS = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "None"}


@dataclass(frozen=True)
class Bounds:
    """What a number may be: at least `ge`, above `gt`, at most `le`, below `lt`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def hold(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        words = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        return " and ".join(
            f"{word} {limit:g}" for word, limit in words.items() if limit is not None
        )


@dataclass(frozen=True)
class Alternative:
    """One of the types that a setting may have, with its bounds or, of a Literal, its values."""

    kind: Any
    bounds: tuple[Bounds, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> "Alternative":
        if get_origin(hint) is not Annotated:
            return cls(hint)
        kind, *bounds = get_args(hint)
        return cls(kind, tuple(bounds))

    @property
    def choices(self) -> tuple[Any, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind is int:
            fits = type(value) is int
        elif self.kind is float:
            fits = type(value) in (int, float) and math.isfinite(value)
        elif self.kind in WORDS:
            fits = type(value) is self.kind
        else:
            return True
        return fits and all(bounds.hold(value) for bounds in self.bounds)

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        bounds = "".join(f" ({bounds})" for bounds in self.bounds)
        return WORDS.get(self.kind, "of another type") + bounds


def check_settings(settings: Named) -> None:
    """Raises: ConfigError for the first field whose value is not what it declares."""
    for key, (default, alternatives) in _declared(type(settings)).items():
        value = getattr(settings, key)
        if any(alternative.allows(value) for alternative in alternatives):
            continue
        words = [str(choice) for alternative in alternatives for choice in alternative.choices]
        raise setting_error(
            settings,
            key,
            " or ".join(map(str, alternatives)),
            fix="leave it out" if default is None else f"leave it out: the default is {default}",
            **({"closest": closest(str(value), words)} if words else {}),
        )


def check_rank(method: str, r: int, site: str, inputs: int, outputs: int) -> None:
    """Raises: ConfigError if r is larger than a layer of this size allows."""
    most = max(MAX_RANK, inputs + outputs)
    if r > most:
        raise ConfigError(
            f"{method}.r is {r:.4g}, and {site} has {inputs} inputs and {outputs} outputs.",
            fix=f"give it an r of at most {most}",
        )


def setting_error(
    settings: Named, key: str, must_be: str, *, fix: str = "leave it out", **facts: object
) -> ConfigError:
    """The error that setting `key` is not what it must be."""
    value = getattr(settings, key)
    return ConfigError(
        f"{settings.name}.{key} is {value!r}; it must be {must_be}.", fix=fix, **facts
    )


@cache
def _declared(kind: type) -> dict[str, tuple[Any, list[Alternative]]]:
    """The default and the alternatives of every field of a class of settings."""
    hints = get_type_hints(kind, include_extras=True)
    declared = {}
    for field in fields(kind):
        declared[field.name] = field.default, alternatives_of(hints[field.name])
    return declared


def alternatives_of(hint: Any) -> list[Alternative]:
    """The types that a type hint allows."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [Alternative.of(option) for option in options]
