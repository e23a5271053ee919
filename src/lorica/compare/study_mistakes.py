"""What is wrong between the settings of a study, or between its sides."""

from collections import Counter
from collections.abc import Iterator, Sequence

from lorica.compare.study import Study
from lorica.core.bounds import MAX_RANK, check_rank
from lorica.errors import ConfigError, closest
from lorica.recipe.settings import Mistake, Where
from lorica.recipe.validate import one_line
from lorica.training.config import TrainConfig

MAX_SEEDS = 1000
MAX_RANKS = 100


def study_mistakes(study: Study) -> Iterator[Mistake]:
    """What is wrong between the study's own settings."""
    if len(study.seeds) > MAX_SEEDS:
        what = f"seeds has {len(study.seeds):,} seeds; a study has at most {MAX_SEEDS:,}"
        yield Mistake(("seeds",), what)
    if twice := sorted(seed for seed, count in Counter(study.seeds).items() if count > 1):
        what = f"seeds has {twice[0]} twice; a second run with one seed is the same run"
        yield Mistake(("seeds",), what)
    if study.rates is not None and study.rates.seed in study.seeds:
        what = f"rates.seed is {study.rates.seed}, which is one of seeds; the rate would be chosen "
        yield Mistake(("rates", "seed"), what + "by a run that is scored: give another seed")
    if study.rates is not None and study.data.validation == 0:
        what = "data.validation is 0, and the rates are searched on validation rows"
        yield Mistake(("data", "validation"), f"{what}; name a file, or set rates to null")
    known = measure_names()
    for name in study.measures:
        if name not in known:
            what = f"measures has {name!r}; it must be of {', '.join(known)}"
            yield Mistake(("measures",), f"{what}; closest {closest(name, known)}")
    if study.goal not in study.all_measures:
        what = f"goal is {study.goal!r}, which is not measured"
        yield Mistake(("goal",), f"{what}; the measures are {', '.join(study.all_measures)}")


def measure_names() -> list[str]:
    """What can be measured on test rows."""
    from lorica.evaluation.task import Task

    return ["loss", "token_accuracy", *Task.names()]


def mistakes_between(
    study: Study, configs: Sequence[tuple[str, int | None, TrainConfig, Where]]
) -> Iterator[Mistake]:
    """Sides that are equal, or have one name; a reference that is no side."""
    names = [name for name, *_ in configs]
    counts = Counter(names)
    by_settings: dict[str, str] = {}
    for name, _, config, where in configs:
        key = config.model_dump_json()
        if counts[name] > 1:
            yield Mistake(where, f"two sides have the name {name!r}; rename one")
        elif key in by_settings:
            what = f"the sides {by_settings[key]!r} and {name!r} have the same settings"
            yield Mistake(where, f"{what}; a side cannot differ from itself: leave one out")
        by_settings.setdefault(key, name)
        if what := _excess_of_rank(config):
            yield Mistake((*where, "ranks"), f"{name}: {what}")
    if study.reference is not None and names and study.reference not in names:
        what = f"reference is {study.reference!r}, which is no side; closest "
        near = closest(study.reference, names)
        yield Mistake(("reference",), f"{what}{near}; the sides are {', '.join(names)}")


def _excess_of_rank(config: TrainConfig) -> str:
    """Why the rank of a side is more than any layer of its base allows; "" if it is not."""
    rank = config.method.get("r")
    if type(rank) is not int or rank <= MAX_RANK:
        return ""
    from transformers import AutoModel

    from lorica.base.describe import skeleton
    from lorica.core.site import sites_of

    sites = sites_of(skeleton(config.base, AutoModel))
    site = max(sites, key=lambda site: site.in_features + site.out_features)
    sizes = site.in_features, site.out_features
    try:
        check_rank(config.method["name"], rank, f"the largest layer, {site.name},", *sizes)
    except ConfigError as error:
        return one_line(error)
    return ""


def wrong_method(name: str) -> str:
    """Why a side without a method cannot have this name: it is that of a method; "" if it can."""
    from lorica.core.adapter import Method

    method = name.strip().lower().replace("-", "_")
    if method == "lora" or method not in Method.names():
        return ""
    return (
        f"sides.{name} has no method, and would be lora under the name of {method}: write "
        f"`method: {method}`, or give it another name"
    )
