"""The settings of a study, and the sides that it compares.

A study is written like a recipe; every mistake is reported at once, with its file and line, before
anything is trained. `read_study` imports no torch until the methods of the sides are checked.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lorica.compare.report.text import HIDING, MAX_NAME
from lorica.data.config import DataConfig
from lorica.errors import ConfigError
from lorica.recipe.flags import resolve_paths
from lorica.recipe.settings import Mistake, Settings, raise_mistakes
from lorica.recipe.validate import validate_settings
from lorica.recipe.values import format_value
from lorica.recipe.yaml_file import read_yaml, to_yaml

STUDY = "study.yaml"
PATHS = [("base",), ("data", "path"), ("data", "validation"), ("test",), ("before",)]
FIX = "docs/guides/compare.md lists the settings of a study"

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class RateSearch(BaseModel):
    """How the learning rate of each side is searched, on the validation rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    factors: list[Annotated[float, Field(gt=0)]] = Field(default=[0.3, 1.0, 3.0], min_length=1)
    """rates to try, as multiples of train.learning_rate or else of the method's own default"""
    rungs: Annotated[int, Field(ge=1, le=8)] = 2
    """evaluations at which rates may stop: after each rung the better half goes on; the last rung
    is the end of the run, and each one before it is at half the steps of the next"""
    seed: Seed = 1000
    """seed of the runs of the search; never one of `seeds`"""


class Study(BaseModel):
    """What is compared, on which rows, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base: Annotated[str, Field(min_length=1)]
    """folder or hub id of the base model; `bundled` is in this package"""
    data: DataConfig
    """training and validation rows, as in a recipe"""
    test: Annotated[str, Field(min_length=1)]
    """rows that are scored once, by the final runs"""
    before: Annotated[str, Field(min_length=1)] | None = None
    """rows of what the base could do before, for forgetting; null: the base's own, where known"""
    measures: list[str] = ["loss"]
    """what is measured on the test rows, besides the loss"""
    goal: str = "loss"
    """the measure that the verdict is about"""
    reference: str | None = None
    """the side that the others are compared with; null: the first one"""
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    """seeds of the final runs; each one orders the rows in the same way for all sides"""
    train: dict[str, Any] = {}
    """settings of all runs, as in a recipe"""
    rates: RateSearch | None = RateSearch()
    """search of the learning rates; null: each side has the rate that it is given, or its own"""
    sides: dict[str, dict[str, Any]] = Field(min_length=1)
    """name -> method, ranks (one side for each), and settings that differ from `train`"""

    @property
    def all_measures(self) -> list[str]:
        """The measures, without repeats; the loss is the first."""
        return list(dict.fromkeys(["loss", *self.measures]))


def read_study(path: Path) -> tuple[Study, Settings]:
    """(the study, its settings with the place of each). The sides are checked by `expand`.

    A path in it may stand relative to the working directory or to the study's folder.
    Raises: ConfigError with every mistake, each with file and line.
    """
    settings = read_yaml(path)
    resolve_paths(settings, path.parent, PATHS)
    return validate(settings), settings


def validate(settings: Settings) -> Study:
    """Settings as a study. Raises: ConfigError with every mistake, each with its place."""
    wrong = _wrong_sides(settings)
    study, mistakes = validate_settings(Study, settings)
    mistakes += wrong
    if mistakes := settings.mistakes + mistakes:
        raise_mistakes(mistakes, settings, FIX)
    assert study is not None  # no mistakes
    return study


def _wrong_sides(settings: Settings) -> list[Mistake]:
    """Sides with a name that cannot be printed, or that are no mapping; they are replaced."""
    mistakes, sides = list[Mistake](), settings.data.get("sides")
    if not isinstance(sides, dict):
        return []
    for name, side in [*sides.items()]:
        if what := _wrong_name(name):
            mistakes.append(Mistake(("sides", name), what))
            sides[repr(name)] = sides.pop(name)
        elif not isinstance(side, dict):
            what = f"sides.{name} is {format_value(side)}; it must be a mapping with a method"
            mistakes.append(Mistake(("sides", name), what))
            sides[name] = {}
    return mistakes


def _wrong_name(name: str) -> str:
    """Why a name cannot be that of a side, which terminals and pages show; "" if it can."""
    if not name.strip():
        return f"sides has the name {name!r}; give the side a name that can be read"
    if HIDING.search(name) or set(name) & set("\t\n"):
        what = "a line break, a control character or a mark that hides or reorders text"
        return f"sides has the name {name!a}, with {what}: leave it out"
    if len(name) > MAX_NAME:
        return f"sides has a name of {len(name):,} characters, {name[:40]!r}...; at most {MAX_NAME}"
    return ""


def resolved(study: Study) -> str:
    """All settings of a study as YAML; `read_study` gives the same study."""
    return to_yaml(plain_study(study))


def plain_study(study: Study) -> dict[str, Any]:
    """All settings of a study as JSON types; settings that are null by default are left out."""
    plain = study.model_dump(mode="json")
    plain["data"] = study.data.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in plain.items() if value is not None or key == "rates"}


def check_unchanged(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises: ConfigError, naming what differs, if a study is not the one begun in `folder`.

    then: the settings that it began with, as its records have them; now: as plain_study gives them.
    """
    before, after = dict(_by_name(then)), dict(_by_name(now))
    changed = {
        name: f"{before.get(name, 'not set')} -> {after.get(name, 'not set')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }
    if changed:
        raise ConfigError(
            f"{folder} holds a study with other settings; {len(changed)} have changed.",
            **changed,
            fix=f"restore them, also in {folder / STUDY}, or choose another output",
        )


def _by_name(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as JSON) of each setting."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _by_name(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value)
