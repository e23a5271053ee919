"""How good the choice of `lorica choose` is on tasks that its rules were not made on.

    python -m benchmarks.choose DATA --base BASE --output FOLDER [--steps 150] [--try 10min]

DATA holds rt-polarity (classify/), Multi30k (translate/) and E2E NLG (nlg/) as published. Of each
task 3,000 rows are trained on, and 200 others are scored. `lorica compare` searches the rate of
every candidate; the choice has its own rate, and all runs have as many steps. Printed is how much
the loss of the choice lies above that of the best, with an interval over the rows.
"""

import argparse
import csv
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorica.cli.durations import seconds_of
from lorica.cli.tried import tried_choice
from lorica.compare.results import MeasureScores, SideResult
from lorica.compare.runner import run_study
from lorica.compare.study import read_study
from lorica.plan.choose.choice import Choice, choose
from lorica.plan.choose.gather import gather
from lorica.plan.current_device import current_device
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import TrainConfig, read

ROWS, TEST_ROWS, RESAMPLES = 3_000, 200, 5_000
CANDIDATES: dict[str, dict[str, Any]] = {
    "lora": {"method": {"name": "lora"}},
    "dora": {"method": {"name": "dora", "r": 8}},
    "adalora": {"method": {"name": "adalora"}},
    "full": {"method": {"name": "full"}},
}
Pairs = Iterator[tuple[str, str]]


def rt_polarity(data: Path) -> Pairs:
    """Film reviews with their sentiment as a word."""
    for suffix, word in (("pos", " positive"), ("neg", " negative")):
        text = (data / f"classify/rt-polarity/rt-polarity.{suffix}").read_text("latin-1")
        yield from ((line.strip() + "\nSentiment:", word) for line in text.splitlines())


def multi30k(data: Path) -> Pairs:
    """Captions from English to German."""
    folder = data / "translate/multi30k"
    english, german = (
        gzip.decompress((folder / f"train.{code}.gz").read_bytes()).decode().splitlines()
        for code in ("en", "de")
    )
    yield from ((f"{a.strip()}\n", b.strip()) for a, b in zip(english, german, strict=True))


def e2e_nlg(data: Path) -> Pairs:
    """Restaurants from a record to a sentence."""
    with (data / "nlg/e2e_nlg/devset.csv").open(encoding="utf-8-sig") as file:
        yield from ((row["mr"] + "\n", row["ref"]) for row in csv.DictReader(file))


TASKS: dict[str, Callable[[Path], Pairs]] = {
    "rt-polarity": rt_polarity,
    "multi30k en-de": multi30k,
    "e2e_nlg": e2e_nlg,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--try", dest="try_", help="also measure the choice with --try")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sides", nargs="*", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--ranks", nargs="*", type=int, default=[4, 16, 32], help="of lora")
    given = parser.parse_args()
    tried = "with --try | above the best | " if given.try_ else ""
    print(f"| task | choice | above the best | {tried}best | losses |")
    print(f"|---|---|---:|{'---|---:|' if given.try_ else ''}---|---|")
    for name in given.tasks:
        folder = given.output / name.replace(" ", "-")
        print(_row(name, folder, given), flush=True)


def _row(name: str, folder: Path, given: argparse.Namespace) -> str:
    """A task's line of the table."""
    config = _write(TASKS[name](given.data), folder, given.base)
    gathered = gather(config, current_device(), "quality", "lorica")
    choice = choose(gathered.situation)
    choices = {"choice": choice}
    if given.try_:
        seconds = seconds_of(given.try_, "--try")
        choices["tried"] = tried_choice(choice, config, gathered, seconds)
    sides = {side: dict(CANDIDATES[side]) for side in given.sides}
    if "lora" in sides:
        sides["lora"]["ranks"] = given.ranks
    candidates = _study(folder / "candidates", given, sides, search=True)
    own = {key: _side(choice) for key, choice in choices.items()}
    distinct = {key: side for key, side in own.items() if side not in list(own.values())[:1]}
    chosen = _study(folder / "choices", given, {"choice": own["choice"], **distinct}, search=False)
    every = {side.name: _loss(side) for side in (*candidates, *chosen)}
    best = min(every, key=lambda side: every[side].value)
    cells = [name]
    for key, choice in choices.items():  # a try that confirms the choice is the same side
        name = key if key in distinct else "choice"
        cells += [_words(choice), _above(every[name], every[best])]
    losses = ", ".join(f"{side} {scores.value:.3f}" for side, scores in every.items())
    return f"| {' | '.join([*cells, best, losses])} |"


def _write(pairs: Pairs, folder: Path, base: str) -> TrainConfig:
    """Write the rows of a task. Returns: base and training rows as settings."""
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"test": rows[:TEST_ROWS], "train": rows[TEST_ROWS : TEST_ROWS + ROWS]}
    for name, lines in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = {"base": base, "data": str(folder / "train.jsonl")}
    return read(None, settings, check_method=method_from_source)


def _side(choice: Choice) -> dict[str, Any]:
    """The choice as a side of a study, at its own rate."""
    names = ("method", "target_modules", "learning_rate", "quantisation")
    return {key: choice.settings[key] for key in names if key in choice.settings}


def _study(
    folder: Path, given: argparse.Namespace, sides: dict[str, Any], *, search: bool
) -> tuple[SideResult, ...]:
    study = {
        "base": given.base,
        "data": str(folder.parent / "train.jsonl"),
        "test": str(folder.parent / "test.jsonl"),
        "seeds": [0],
        "train": {"max_steps": given.steps, "micro_batch_size": 8, "warmup_ratio": 0.1},
        "rates": {"factors": [0.3, 1, 3], "rungs": 2} if search else None,
        "sides": sides,
    }
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(study), encoding="utf-8")
    resume = (folder / "study.yaml").is_file()
    return tuple(run_study(*read_study(path), folder, resume=resume).sides)


def _loss(side: SideResult) -> MeasureScores:
    return side.finals[0].scores["loss"]


def _above(one: MeasureScores, best: MeasureScores) -> str:
    """How much a loss lies above the best, in percent, with a 95 % interval over the rows."""
    weights = np.asarray(one.weights or np.ones(len(one.rows)))
    a, b = np.asarray(one.rows) * weights, np.asarray(best.rows) * weights
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.quantile(a[drawn].sum(1) / b[drawn].sum(1) - 1, [0.025, 0.975])
    return f"{one.value / best.value - 1:+.1%} [{low:+.1%}, {high:+.1%}]"


def _words(choice: Choice) -> str:
    method = choice.settings["method"]
    r = f" r={method['r']}" if "r" in method else ""
    return f"{method['name']}{r}, {choice.settings['learning_rate']:g}"


if __name__ == "__main__":
    main()
