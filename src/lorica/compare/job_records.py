"""What a job of a study comes to: its runs are trained, scored if they are final runs, recorded.

A job is plain data and needs nothing else of the study, so that any process can do it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica import progress
from lorica.compare.scoring import score_run
from lorica.compare.training_jobs import (
    FinalScoring,
    Job,
    UnitRun,
    train_job,
    validation_loss,
    words_of,
)
from lorica.errors import LoricaError, ResourceError, Stopped
from lorica.formats import commit
from lorica.training.run import RESULTS, by_step, read_events

CURVE = 200
"""Most points of a learning curve that are kept."""


@dataclass(frozen=True)
class JobResult:
    """records: one for each run. training, recording: seconds that they took."""

    records: list[dict[str, Any]]
    training: float
    recording: float


def run_job(job: Job) -> JobResult:
    """Do a job. Raises: ResourceError, Stopped: the study cannot go on."""
    began = time.monotonic()
    errors = train_job(job)
    trained = time.monotonic()
    records = [
        _trial(unit, job.until, errors.get(unit))
        if job.scoring is None
        else _final(unit, job.scoring, errors.get(unit))
        for unit in job.runs
    ]
    return JobResult(records, trained - began, time.monotonic() - trained)


def _trial(unit: UnitRun, steps: int | None, error: str | None) -> dict[str, Any]:
    """The record of a run of the rate search after `steps` steps."""
    loss = None if error or steps is None else validation_loss(unit.folder, steps)
    record = {"kind": "trial", "side": unit.side, "learning_rate": unit.config.learning_rate}
    return {**record, "steps": steps, "loss": loss, "error": error}


def _final(unit: UnitRun, scoring: FinalScoring, error: str | None) -> dict[str, Any]:
    """The record of a final run."""
    record: dict[str, Any] = {
        "kind": "final",
        "side": unit.side,
        "seed": unit.config.seed,
        "learning_rate": unit.config.learning_rate,
    }
    if error is not None:
        return {**record, "error": error}
    try:
        return record | _figures(unit, scoring)
    except (ResourceError, Stopped):
        raise
    except LoricaError as reason:
        return {**record, "error": words_of(reason, unit.folder)}


def _figures(unit: UnitRun, scoring: FinalScoring) -> dict[str, Any]:
    """What a run that has ended came to."""
    folder, events = unit.folder, read_events(unit.folder)
    results = commit.read_json(folder / RESULTS)
    steps, losses = by_step(events, "step", "loss")
    every = -(-len(steps) // CURVE)
    curve = list(zip(steps, losses, strict=True))
    # a quantised base is not the study's, and has a loss of its own
    before_loss = None if unit.config.quantisation is not None else scoring.before_loss
    with progress.reporting(False):
        scores = score_run(folder, scoring.settings, before_loss)
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


def _notices(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The notices of a run in the order of its log, each once.

    The run's own list begins anew with each resume, and the log has them all. Its first line is the
    count of parameters, which is no notice.
    """
    return list(dict.fromkeys(e["text"] for e in events if e["event"] == "line"))[1:]


def _adapter_bytes(folder: Path) -> int:
    """The size of the weights of an adapter on the disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
