"""`lorica choose --try`: short trainings of the choice at other ranks and rates, by a study.

The ranks are the chosen one, and half and twice of it where the base and the goal allow; of each,
three learning rates are searched by successive halving. The rows of the test are held out of the
user's own. A rank is taken in place of the chosen one only if it is better on these rows by more
than their uncertainty. One seed is run.
"""

import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica import progress
from lorica.cli.planned import duration
from lorica.errors import DataError
from lorica.plan.choose.choice import Choice
from lorica.plan.choose.gather import Gathered
from lorica.plan.choose.rank import RANKS, highest_rank
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.recipe import training_of
from lorica.training.config import TrainConfig

if TYPE_CHECKING:
    from lorica.compare.results import SideResult, StudyResult

FACTORS, RUNGS = (0.3, 1.0, 3.0), 2
TEST_SHARE, TEST_ROWS, LEAST_ROWS, MOST_ROWS = 0.1, 200, 100, 20_000
PASSES = 4.0
"""Full runs that the search and the final run of a side are about as long as."""
SHARE = 0.6
"""Of the time, for the steps; the rest is for starting and scoring."""
LEAST_STEPS = 20
RESAMPLES = 2_000
TOO_LONG = 5
"""Times the limit: a try that needs more is not begun."""


@dataclass(frozen=True)
class Tried:
    """r: to take; None: the method has no rank. rate: the best one of it. reasons: of both.
    what: was tried, in a sentence."""

    r: int | None
    rate: float
    reasons: tuple[Reason, ...]
    what: str = ""


def try_choice(
    choice: Choice, config: TrainConfig, ranks: Sequence[int], rows: int, seconds: float
) -> Tried:
    """Train the choice briefly at `ranks`. config: base, data and seed. rows: training rows.

    Raises: DataError for rows too few to hold some out, and what training them raises.
    """
    from lorica.compare.clock import Clock
    from lorica.compare.runner import run_study
    from lorica.compare.study import read_study

    clock = Clock(seconds)  # the time of measuring counts, too
    with tempfile.TemporaryDirectory(prefix="lorica-choose-") as folder:
        place = Path(folder)
        train, test = _hold_out(config, place)
        steps, needed = _steps(choice, config, rows, seconds, max(len(ranks), 1))
        if needed > TOO_LONG * seconds:
            what = f"Tried: nothing. --try has {duration(seconds)}, and about {duration(needed)} "
            own = choice.settings["method"].get("r"), choice.settings["learning_rate"]
            return Tried(*own, (), f"{what}are needed: all is as without it.")
        progress.announce(_announced(ranks, needed, seconds))
        study = _study(choice, config, ranks, steps, train, test)
        path = place / "study.yaml"
        path.write_text(json.dumps(study), encoding="utf-8")  # JSON is YAML
        with progress.reporting(False):  # its words are of reports, and of going on
            result = run_study(*read_study(path), place / "runs", clock=clock)
    return replace(decide(result, choice, steps), what=_what_was_tried(result, needed))


def _announced(ranks: Sequence[int], needed: float, seconds: float) -> str:
    """What will be tried, before it is. needed: seconds."""
    at = f"at {_ranks_in_words(ranks)} and " if ranks else "at "
    text = f"--try: short trainings {at}{len(FACTORS)} rates"
    if needed > seconds:
        text += f"; they need about {duration(needed)} here, and have {duration(seconds)}: "
        text += "not all of them will end"
    return text


def _what_was_tried(result: "StudyResult", needed: float) -> str:
    """needed: seconds for a result."""
    ended = [side for side in result.sides if any(t.loss is not None for t in side.trials)]
    if not ended:
        return (
            "Tried: nothing. No training ended within the time of --try, and all is as without "
            f"it; about {duration(needed)} are needed."
        )
    ranks = [side.rank for side in ended if side.rank is not None]
    at = f"{_ranks_in_words(ranks)}, " if ranks else ""
    return (
        f"Tried: {at}each at up to {len(FACTORS)} rates, with one seed and few steps and rows: "
        "small differences cannot be told."
    )


def _ranks_in_words(ranks: Sequence[int]) -> str:
    words = [f"r={rank}" for rank in ranks]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def tried_choice(choice: Choice, config: TrainConfig, gathered: Gathered, seconds: float) -> Choice:
    """The choice with the rank and rate that short trainings show to be the best.

    Raises: what `try_choice` does.
    """
    rows = config.data.model_copy(update=gathered.data)
    config = config.model_copy(update={"data": rows})
    ranks = ranks_to_try(choice, highest_rank(gathered.situation))
    tried = try_choice(choice, config, ranks, gathered.situation.rows.train, seconds)
    settings = with_tried(choice.settings, tried)
    changed = {reason.what for reason in tried.reasons}
    changed |= {"band"} if "r" in changed else set()  # it speaks of the rank before
    reasons = [r for r in choice.reasons if r.what not in changed]
    alpha = settings["method"].get("alpha")
    reasons = [replace(r, value=alpha) if r.what == "alpha" else r for r in reasons]
    return replace(
        choice,
        settings=settings,
        reasons=(reasons[0], *tried.reasons, *reasons[1:]),
        doubts=tuple(doubt for doubt in choice.doubts if doubt.what != "learning_rate"),
        tried=tried.what,
    )


def ranks_to_try(choice: Choice, most: int) -> list[int]:
    """The chosen rank, half and twice of it, between the lowest of RANKS and `most`."""
    r = choice.settings["method"].get("r")
    if r is None or choice.method in ("adalora", "hyperlora"):
        return []
    return [x for x in (r // 2, r, 2 * r) if x == r or RANKS[0] <= x <= most]


def decide(result: "StudyResult", choice: Choice, steps: int) -> Tried:
    """The rank and rate to take, from the results of a study, whether or not it is complete."""
    own = choice.settings["method"].get("r")
    sides = {side.rank: side for side in result.sides}
    losses = {
        rank: side.finals[0].scores["loss"].value
        for rank, side in sides.items()
        if side.finals and "loss" in side.finals[0].scores
    }
    rank, reasons = own, list[Reason]()
    if own in losses and len(losses) > 1:
        best = min(losses, key=lambda r: losses[r])
        if best != own and _is_better(sides[best], sides[own]):
            rank, verdict = best, f"r={best} is better beyond the uncertainty of the rows"
        else:
            verdict = f"r={own} stays: it cannot tell them apart beyond the uncertainty of the rows"
        table = ", ".join(f"{loss:.4g} at r={r}" for r, loss in losses.items())
        why = f"loss on held-out rows after {steps:,} steps, each at its best rate: {table}; "
        reasons.append(Reason("r", rank, why + verdict, ("rule-try",)))
    elif len(sides) > 1:
        why = "the time ended before the ranks were compared; the rank stays"
        reasons.append(Reason("r", own, why, ("rule-try",)))
    reason = _rate_of(sides[rank], choice.settings["learning_rate"])
    return Tried(rank, reason.value, (*reasons, reason))


def _rate_of(side: "SideResult", default: float) -> Reason:
    """The best learning rate of a side, by the validation rows, of those that went furthest."""
    furthest = max((t.steps for t in side.trials if t.loss is not None), default=0)
    tried = {t.learning_rate: t.loss for t in side.trials if t.steps == furthest}
    known = {rate: loss for rate, loss in tried.items() if loss is not None}
    if not known:
        why = "the time ended before a rate was tried; the default stays"
        return Reason("learning_rate", default, why, ("rule-try",))
    best = min(known, key=lambda rate: known[rate])
    table = ", ".join(f"{loss:.4g} at {rate:g}" for rate, loss in sorted(known.items()))
    why = f"loss on the validation rows after {furthest:,} steps: {table}"
    return Reason("learning_rate", best, why, ("rule-try",))


def with_tried(settings: Mapping[str, Any], tried: Tried) -> dict[str, Any]:
    """The settings of a choice at the rank and rate that were tried."""
    method = dict(settings["method"])
    if tried.r is not None:
        method["r"] = tried.r
        if "alpha" in method:
            method["alpha"] = 2 * tried.r
    return {**settings, "method": method, "learning_rate": tried.rate}


def _is_better(one: "SideResult", other: "SideResult") -> bool:
    """Whether `one` has a lower loss, by a 95 % interval over rows, resampled in pairs."""
    a, b = (side.finals[0].scores["loss"] for side in (one, other))
    weights = np.asarray(a.weights or np.ones(len(a.rows)))
    gain = (np.asarray(b.rows) - np.asarray(a.rows)) * weights
    drawn = np.random.default_rng(0).integers(len(gain), size=(RESAMPLES, len(gain)))
    means = gain[drawn].sum(1) / weights[drawn].sum(1)
    return bool(np.quantile(means, 0.025) > 0)


def _hold_out(config: TrainConfig, folder: Path) -> tuple[Path, Path]:
    """Files of rows to train on and to test on, drawn from the user's rows."""
    from lorica.data.source import read

    rows = [row.fields for row in read(config.data)]
    if len(rows) == 1 and isinstance(text := rows[0].get("text"), str):  # a file of text
        cut = int(len(text) * (1 - TEST_SHARE))
        rows_of = {"train": [{"text": text[:cut]}], "test": [{"text": text[cut:]}]}
    else:
        if len(rows) < LEAST_ROWS:
            raise DataError(
                f"{config.data.path} has {len(rows)} rows; --try holds some of them out, and needs "
                f"{LEAST_ROWS}.",
                fix="leave --try out",
            )
        random.Random(config.seed).shuffle(rows)
        count = min(int(len(rows) * TEST_SHARE), TEST_ROWS)
        rows_of = {"train": rows[count : count + MOST_ROWS], "test": rows[:count]}
    for name, some_rows in rows_of.items():
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in some_rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "train.jsonl", folder / "test.jsonl"


def _steps(
    choice: Choice, config: TrainConfig, rows: int, seconds: float, sides: int
) -> tuple[int, float]:
    """(steps of a run, so that all sides end within `seconds`, and at most those of the recipe;
    the seconds that the fewest steps need, with the start)."""
    from lorica.plan.measure import measure

    probed = training_of(choice, config)
    measured = measure(probed)
    each = sides * PASSES * max(measured.step, 1e-4) / SHARE  # of a step of every run
    fitting = int(seconds / each)
    rows_per_step = probed.micro_batch_size * probed.gradient_accumulation_steps
    whole = math.ceil(choice.settings["epochs"] * rows / rows_per_step)
    return max(min(fitting, whole), LEAST_STEPS), measured.start + LEAST_STEPS * each


def _study(
    choice: Choice,
    config: TrainConfig,
    ranks: Sequence[int],
    steps: int,
    train: Path,
    test: Path,
) -> dict[str, Any]:
    """The settings of the study."""
    own = ("method", "epochs", "learning_rate", "eval_steps", "early_stopping_patience")
    settings = {key: value for key, value in choice.settings.items() if key not in own}
    method = dict(choice.settings["method"])
    side: dict[str, Any] = {"method": method, "learning_rate": choice.settings["learning_rate"]}
    if ranks:
        method.pop("r")
        method.pop("alpha", None)  # twice the rank is the default
        side["ranks"] = list(ranks)
    data = config.data.model_dump(mode="json", exclude_unset=True)
    data |= {"path": str(train)}
    return {
        "base": config.base,
        "data": {key: value for key, value in data.items() if key not in ("limit", "split")},
        "test": str(test),
        "seeds": [config.seed],
        "train": {**settings, "max_steps": steps},
        "rates": {"factors": list(FACTORS), "rungs": RUNGS},
        "sides": {choice.method: side},
    }
