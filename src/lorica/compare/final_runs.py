"""The final runs: each side with each seed at its chosen rate, scored once on the test rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorica import progress
from lorica.compare.scoring import ScoreSettings, score_run
from lorica.compare.study_run import StudyRun
from lorica.compare.training_jobs import (
    Job,
    UnitRun,
    group,
    remove_checkpoints,
    remove_run,
    run_of,
    words_of,
)
from lorica.errors import LoricaError, ResourceError, Stopped
from lorica.formats import commit
from lorica.training.run import RESULTS, by_step, read_events

CURVE = 200
"""Most points of a learning curve that are kept."""


def run_finals(run: StudyRun) -> bool:
    """Train and score what is not recorded yet. False: the budget was spent before the last.

    The runs are in the order of their seeds, so that a study that is cut has pairs.
    """
    units: list[UnitRun] = []
    for seed in run.study.seeds:
        for side in run.sides:
            rate = run.records.last("rate", side=side.name)
            if rate is None:  # the budget was spent
                continue
            if rate["learning_rate"] is None:
                _record_without_rate(run, side.name, seed, rate["notices"])
                continue
            folder = run.run_folder("final", side, f"seed-{seed}")
            units.append(run_of(side, folder, rate["learning_rate"], seed, run.steps[side.name]))
    for job in group(units, None, run.size):
        expected = sum(run.seconds(unit.side, run.steps[unit.side]) for unit in job.runs)
        scoring = run.scoring_seconds * len(job.runs)
        if all(run.records.last("final", side=u.side, seed=u.config.seed) for u in job.runs):
            run.clock.training.skip(expected)
            run.clock.scoring.skip(scoring)
            run.count(len(job.runs))
        elif not run.train(
            job, "final runs", expected, lambda e, j=job: _finals(run, j, e), scoring
        ):
            return False
        for unit in job.runs:
            if (unit.folder / RESULTS).exists():
                remove_checkpoints(unit.folder)
            else:
                remove_run(unit.folder)
    return True


def _record_without_rate(run: StudyRun, side: str, seed: int, why: list[str]) -> None:
    """Record a final run that cannot be made, because no rate could be chosen."""
    if run.records.last("final", side=side, seed=seed) is None:
        record = {"kind": "final", "side": side, "seed": seed, "learning_rate": 0.0}
        run.records.append([{**record, "error": "; ".join(why)}])
    run.count(1)


def _finals(run: StudyRun, job: Job, errors: Mapping[UnitRun, str]) -> list[dict[str, Any]]:
    """The records of a job's runs."""
    records = []
    for unit in job.runs:
        record: dict[str, Any] = {
            "kind": "final",
            "side": unit.side,
            "seed": unit.config.seed,
            "learning_rate": unit.config.learning_rate,
        }
        if unit in errors:
            records.append({**record, "error": errors[unit]})
            continue
        try:
            record |= _figures(unit, run.scoring, _before_loss(run, unit))
        except (ResourceError, Stopped):
            raise
        except LoricaError as error:
            record["error"] = words_of(error, unit.folder)
        records.append(record)
    return records


def _before_loss(run: StudyRun, unit: UnitRun) -> float | None:
    """The loss of the base on the "before" rows, where the base of the run is the study's."""
    before = (run.records.last("base") or {}).get("before_scores")
    is_own = unit.config.quantisation is not None
    return None if before is None or is_own else before["value"]


def _figures(unit: UnitRun, scoring: ScoreSettings, before_loss: float | None) -> dict[str, Any]:
    """What a run that has ended came to."""
    folder, events = unit.folder, read_events(unit.folder)
    results = commit.read_json(folder / RESULTS)
    steps, losses = by_step(events, "step", "loss")
    every = -(-len(steps) // CURVE)
    curve = list(zip(steps, losses, strict=True))
    with progress.reporting(False):
        scores = score_run(folder, scoring, before_loss)
    notices = [*_notices(events), *scores.pop("answers")]
    return {
        **scores,
        "curve": [*curve[::every], *([curve[-1]] if (len(curve) - 1) % every else [])],
        "validation": list(zip(*by_step(events, "eval", "loss"), strict=True)),
        "ranks": results.get("ranks", {}),
        "notices": [line.replace(str(folder), "the run") for line in notices],
        "sizes": {
            "adapter_bytes": _adapter_bytes(folder / "adapter"),
            "trained": results["parameters"]["trained"],
            "total": results["parameters"]["total"],
        },
    }


def _notices(events: Sequence[dict[str, Any]]) -> list[str]:
    """The notices of a run in the order of its log, each once.

    The run's own list begins anew with each resume, and the log has them all. Its first line is the
    count of parameters, which is no notice.
    """
    return list(dict.fromkeys(e["text"] for e in events if e["event"] == "line"))[1:]


def _adapter_bytes(folder: Path) -> int:
    """The size of the weights of an adapter on the disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
