"""A against A: real studies whose sides are the same, so that every difference shown is wrong.

    python -m benchmarks.compare_aa --shared ../shared          120 runs, 20 studies of two sides

`lorica compare` trains LoRA r=4 on stories260K (tinyshakespeare, 10 steps of 4 rows) with 120 seeds
and scores 100 test rows. The runs are dealt out to 20 studies of two sides with three seeds each,
and to 10 studies of four sides. Then 200 pairs are drawn from all runs, with test rows drawn again.
The seeds of two sides differ, so that only the rows are paired: in a real study the order of the
training rows is, too.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lorica.compare.results import Final, MeasureScores, SideResult, StudyResult
from lorica.compare.runner import run_study
from lorica.compare.study import STUDY, read_study
from lorica.compare.verdict import verdict_of

SEEDS, ROWS = 3, 100


def write_study(shared: Path, folder: Path, runs: int) -> Path:
    """The study of one side, and its rows, in `folder`."""
    play = (shared / "data/text/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    lines = [line for line in play.split("\n\n") if 60 < len(line) < 160]
    for name, start, stop in (("train", 0, 800), ("valid", 800, 820), ("test", 820, 820 + ROWS)):
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines[start:stop])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = {
        "base": str(shared / "data/models/stories260K"),
        "data": {"path": "train.jsonl", "validation": "valid.jsonl", "max_length": 128},
        "test": "test.jsonl",
        "seeds": list(range(runs)),
        "train": {"max_steps": 10, "micro_batch_size": 4, "learning_rate": 3e-3},
        "rates": None,
        "sides": {"a": {"method": {"name": "lora"}, "ranks": [4]}},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return path


def studies(result: StudyResult, sides: int) -> list[StudyResult]:
    """The runs dealt out to studies of equal sides, each run used once."""
    finals, size = list(result.sides[0].finals), sides * SEEDS
    return [
        dealt(result, finals[start : start + size], sides)
        for start in range(0, len(finals) - size + 1, size)
    ]


def dealt(result: StudyResult, finals: Sequence[Final], sides: int) -> StudyResult:
    """A study of sides a0, a1 ... from runs of one side; their seeds are numbered anew."""
    one = result.sides[0]
    parts = [
        SideResult(f"a{k}", one.method, one.rank, one.recipe, (), numbered(finals, k), one.cost)
        for k in range(sides)
    ]
    return replace(result, sides=parts, reference="a0", goal="loss")


def numbered(finals: Sequence[Final], side: int) -> list[Final]:
    own = finals[side * SEEDS : (side + 1) * SEEDS]
    return [replace(final, seed=seed) for seed, final in enumerate(own)]


def redrawn(finals: Sequence[Final], rows: np.ndarray) -> list[Final]:
    """The runs with these test rows, some of them several times."""
    return [replace(final, scores={"loss": picked(final.scores["loss"], rows)}) for final in finals]


def picked(scores: MeasureScores, rows: np.ndarray) -> MeasureScores:
    losses = np.asarray(scores.rows)[rows]
    weights = np.asarray(scores.weights if len(scores.weights) else np.ones(len(scores.rows)))[rows]
    value = float(np.average(losses, weights=weights))
    return replace(scores, value=value, rows=losses.tolist(), weights=weights.tolist())


def shown(result: StudyResult) -> int:
    """How many comparisons of the goal have a verdict of better or worse, after Holm."""
    return sum(c.verdict in ("better", "worse") for c in verdict_of(result, {}).comparisons["loss"])


def resampled(result: StudyResult, samples: int = 200) -> int:
    """Of pairs of six runs drawn from all, on test rows drawn again: how many are shown."""
    generator, finals = np.random.default_rng(0), list(result.sides[0].finals)
    count = 0
    for _ in range(samples):
        runs = [finals[i] for i in generator.choice(len(finals), 2 * SEEDS, replace=False)]
        rows = generator.integers(0, len(runs[0].scores["loss"].rows), ROWS)
        count += shown(dealt(result, redrawn(runs, rows), 2)) > 0
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder of the models and texts")
    parser.add_argument(
        "--output", type=Path, default=Path("build/compare_aa"), help="where a cut command goes on"
    )
    parser.add_argument("--runs", type=int, default=20 * 2 * SEEDS)
    words = parser.parse_args()
    words.output.mkdir(parents=True, exist_ok=True)
    study, settings = read_study(write_study(words.shared.resolve(), words.output, words.runs))
    folder = words.output / "study"
    result = run_study(study, settings, folder, resume=(folder / STUDY).is_file())
    values = [final.scores["loss"].value for final in result.sides[0].finals]
    print(
        f"{len(values)} runs: loss {np.mean(values):.4f}, {np.std(values, ddof=1):.4f} over seeds"
    )
    for sides in (2, 4):
        repeats = studies(result, sides)
        print(f"{sides} equal sides: {sum(map(bool, map(shown, repeats)))} of {len(repeats)} shown")
    print(f"{resampled(result)} of 200 resamples shown")


if __name__ == "__main__":
    main()
