"""From the settings of a study to its sides: one for each method, its settings and its rank."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorica.compare.study import FIX, Study
from lorica.compare.study_mistakes import MAX_RANKS, mistakes_between, study_mistakes, wrong_method
from lorica.recipe.settings import Mistake, Settings, Where, raise_mistakes
from lorica.recipe.validate import validate_member, validate_settings
from lorica.recipe.values import format_value
from lorica.training.config import EXCLUSIVE, TrainConfig, plain_method

SET_BY_STUDY = ("base", "data", "seed", "output", "split", "peer", "report_to", "init_from")
"""Settings of a run that a side cannot have: the study sets them, or they do not compare."""


@dataclass(frozen=True)
class Side:
    """One of the things compared. config: of its runs, but for seed, rate and output.

    centre: the learning rate that the factors of the search multiply.
    """

    name: str
    rank: int | None
    config: TrainConfig
    centre: float

    @property
    def method(self) -> str:
        return self.config.method["name"]

    def rates(self, factors: Sequence[float]) -> list[float]:
        """The rates of a search, lowest first, to two digits."""
        return sorted({float(f"{self.centre * factor:.2g}") for factor in factors})

    def settings(self) -> dict[str, Any]:
        """What a recipe of this side says: the settings that are given, without rate and seed."""
        plain = self.config.model_dump(mode="json", exclude_unset=True)
        data = self.config.data.model_dump(mode="json", exclude_defaults=True)
        method = {"name": self.method, **_given(self.config)}
        for key in ("seed", "output", "learning_rate"):
            plain.pop(key, None)
        plain |= {"data": data, "method": method}
        return json.loads(json.dumps({"base": plain.pop("base"), **plain}))


def _given(config: TrainConfig) -> dict[str, Any]:
    """The settings of the method that are not its defaults."""
    method = config.build_method()
    defaults = {field.name: field.default for field in fields(method)}
    return {k: v for k, v in config.method.items() if k in defaults and v != defaults[k]}


def expand(study: Study, settings: Settings) -> list[Side]:
    """The sides of a study, in their order. Imports torch.

    Raises: ConfigError with every mistake in the sides, their measures and seeds, with its place;
        BaseError if the base cannot be read.
    """
    mistakes = [*study_mistakes(study)]
    configs: list[tuple[str, int | None, TrainConfig, Where]] = []
    for name in study.sides:
        ranks, wrong = _ranks(study, name)
        mistakes += wrong
        for rank in ranks:
            config, wrong = _config_of(study, settings, name, rank)
            mistakes += wrong
            if config is not None:
                label = name if rank is None else f"{name} r={rank}"
                rank = config.method.get("r") if rank is None else rank
                configs.append((label, rank, config, ("sides", name)))
    if mistakes := mistakes or [*mistakes_between(study, configs)]:
        raise_mistakes(mistakes, settings, FIX)
    from lorica.training.prepare import default_learning_rate

    return [
        Side(name, rank, config, config.learning_rate or default_learning_rate(config))
        for name, rank, config in _with_equal_rows(configs)
    ]


def _with_equal_rows(configs: Sequence[tuple[str, int | None, TrainConfig, Where]]):
    """(name, rank, settings) of each side, with rows that fit all of them.

    Some methods use up positions of the base's context: then all sides have shorter rows.
    """
    from lorica.base.describe import context_length

    reserved = max(config.build_method().positions() for *_, config, _ in configs)
    limit = context_length(configs[0][2].base) if reserved else None
    for name, rank, config, _ in configs:
        if limit is not None:
            longest = min(config.data.max_length or limit, limit - reserved)
            data = config.data.model_copy(update={"max_length": longest})
            config = config.model_copy(update={"data": data})
        yield name, rank, config


def _ranks(study: Study, name: str) -> tuple[list[int | None], list[Mistake]]:
    """(the ranks of a side's settings; [None]: the method's own), mistakes."""
    where, given = ("sides", name, "ranks"), study.sides[name].get("ranks")
    if given is None:
        return [None], []
    match given:
        case [*ranks] if ranks and all(type(rank) is int and rank > 0 for rank in ranks):
            pass
        case _:
            what = f"sides.{name}.ranks is {format_value(given)}; it must be a list of whole "
            return [], [Mistake(where, what + "numbers of at least 1")]
    if len(ranks) > MAX_RANKS:
        what = f"sides.{name}.ranks has {len(ranks):,} ranks; a side has at most {MAX_RANKS}"
        return [], [Mistake(where, what)]
    if len(set(ranks)) < len(ranks):
        return [], [Mistake(where, f"sides.{name}.ranks has one rank twice: {format_value(given)}")]
    return [*ranks], []


def _config_of(
    study: Study, settings: Settings, name: str, rank: int | None
) -> tuple[TrainConfig | None, list[Mistake]]:
    """The settings of a side's runs, and the mistakes in them, at their places in the study."""
    side, place = _merged(settings, name, rank)
    mistakes = [
        Mistake(place.get((key,), ("sides", name)), f"{key} is set by the study, not by a side")
        for key in SET_BY_STUDY
        if key in side.data
    ]
    mistakes += [
        Mistake(
            place[(key,)], f"{key} is not a setting of a side; closest ranks, a list: ranks: [8]"
        )
        for key in ("rank", "r")
        if key in side.data
    ]
    for key in (*SET_BY_STUDY, "rank", "r"):
        side.data.pop(key, None)
    side.data |= {"base": study.base, "data": study.data.model_dump(mode="json"), "output": "runs"}
    if "method" not in side.data and (what := wrong_method(name)):
        return None, [*mistakes, Mistake(("sides", name), what)]
    config, wrong = validate_settings(TrainConfig, side)
    method, more = _validate_method(side)
    for mistake in [*wrong, *more]:
        origin = next((place[p] for p in _upwards(mistake.path) if p in place), ("sides", name))
        if (
            mistake.path == ("method", "r")
            and rank is not None
            and "is not a setting" in mistake.what
        ):
            what = f"sides.{name}.ranks is given, and the method has no r: leave ranks out"
            mistake = Mistake(mistake.path, what)
        mistakes.append(Mistake(origin, mistake.what))
    if config is None or method is None or mistakes:
        return None, mistakes
    return config.model_copy(update={"method": plain_method(method)}), []


def _validate_method(side: Settings) -> tuple[Any, list[Mistake]]:
    from lorica.core.adapter import Method

    method = side.data["method"] = plain_method(side.data.get("method", {}))
    if not isinstance(method, dict):
        what = f"method is {format_value(method)}; it must be a mapping, or one word"
        return None, [Mistake(("method",), what)]
    return validate_member(Method, side, "method")


def _merged(settings: Settings, name: str, rank: int | None) -> tuple[Settings, dict[Where, Where]]:
    """The settings of `train` and, over them, of the side; and the place of each in the study."""
    side, place = Settings(), dict[Where, Where]()
    for origin in (("train",), ("sides", name)):
        given = settings.get(origin) or {}
        for first, second in EXCLUSIVE:
            for key, other in ((first, second), (second, first)):
                if key in given and other not in given:
                    side.data.pop(other, None)
        for key, value in given.items():
            if key == "ranks":
                continue
            place = {path: at for path, at in place.items() if path[0] != key}
            side.data[key] = json.loads(json.dumps(value, default=str))
            inner = [p for p in settings.places if p[: len(origin) + 1] == (*origin, key)]
            place |= {p[len(origin) :]: p for p in [*inner, (*origin, key)]}
    if rank is not None:
        method = plain_method(side.data.get("method", {}))
        side.data["method"] = {**method, "r": rank} if isinstance(method, dict) else method
        place["method", "r"] = ("sides", name, "ranks")
    return side, place


def _upwards(path: Where) -> Iterator[Where]:
    """A path, and those around it."""
    for length in range(len(path), 0, -1):
        yield path[:length]
