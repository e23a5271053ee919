"""Settings are checked by the type and the bounds that their fields declare."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest

from lorica.core.adapter import Method
from lorica.core.bounds import Bounds, setting_error
from lorica.errors import ConfigError
from lorica.recipe.values import describe_type


@dataclass(frozen=True, kw_only=True)
class Example(Method):
    name: ClassVar[str] = "example"
    whole: Annotated[int, Bounds(ge=2, le=9)] = 3
    share: Annotated[float, Bounds(ge=0, lt=1)] = 0.5
    rate: Annotated[float, Bounds(gt=0)] | None = None
    any_number: float = 0.0
    switch: bool = False
    choice: Literal["left", "right"] = "left"
    free: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "settings",
    [
        {"whole": 2},
        {"whole": 9},
        {"share": 0},
        {"rate": 1e-9},
        {"rate": None},
        {"any_number": -3},
        {"switch": True},
        {"choice": "right"},
        {"free": ["not", "checked"]},
    ],
    ids=str,
)
def test_values_within_the_bounds(settings):
    Example(**settings)


@pytest.mark.parametrize(
    "key, value, must_be",
    [
        ("whole", 1, "a whole number (at least 2 and at most 9)"),
        ("whole", 10, "a whole number (at least 2 and at most 9)"),
        ("whole", 3.0, "a whole number (at least 2 and at most 9)"),
        ("whole", True, "a whole number (at least 2 and at most 9)"),
        ("whole", None, "a whole number (at least 2 and at most 9)"),
        ("whole", "3", "a whole number (at least 2 and at most 9)"),
        ("share", 1.0, "a number (at least 0 and below 1)"),
        ("share", -0.1, "a number (at least 0 and below 1)"),
        ("rate", 0, "a number (above 0) or None"),
        ("rate", math.inf, "a number (above 0) or None"),
        ("any_number", math.nan, "a number"),
        ("any_number", math.inf, "a number"),
        ("switch", "no", "true or false"),
        ("choice", "lft", "left or right"),
    ],
)
def test_values_outside_are_refused_by_name(key, value, must_be):
    with pytest.raises(ConfigError) as error:
        Example(**{key: value})
    assert error.value.what == f"example.{key} is {value!r}; it must be {must_be}."
    assert error.value.fix and error.value.fix.startswith("leave it out")


def test_the_choice_that_was_meant_is_named():
    with pytest.raises(ConfigError) as error:
        Example(choice="lft")  # type: ignore[arg-type]
    assert error.value.facts == {"closest": "left"}
    assert error.value.fix == "leave it out: the default is left"


def test_recipes_state_the_same_bounds():
    assert (
        describe_type(Annotated[int, Bounds(ge=2, le=9)])
        == "a whole number (at least 2 and at most 9)"
    )
    assert describe_type(Annotated[float, Bounds(gt=0)] | None) == "a number (above 0) or null"


def test_what_two_settings_decide_together_has_the_same_message():
    error = setting_error(Example(whole=5), "whole", "below 4", fix="try 3")
    assert error.what == "example.whole is 5; it must be below 4."
    assert error.fix == "try 3"
