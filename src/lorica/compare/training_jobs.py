"""Train the runs of a study: those that share a base in one pass, others one after another.

A job starts, or goes on, from one state of all its runs, whatever a kill left behind: runs that are
trained in one pass round their sums together, and only the same pass gives the same bits.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorica import plain_files, progress
from lorica.compare.scoring import ScoreSettings
from lorica.compare.sides import Side
from lorica.errors import LoricaError, ResourceError, Stopped, memory_full
from lorica.formats import commit
from lorica.training.checkpoint import steps as checkpoints_in
from lorica.training.config import TrainConfig
from lorica.training.each import SHARED, train_each
from lorica.training.run import RESULTS, by_step, read_events
from lorica.training.train import train

MAX_RUNS = 6
"""Runs in one pass: with more, a pass takes as long as they would one after another."""


@dataclass(frozen=True, eq=False)
class UnitRun:
    """One run: its settings, with rate, seed and output, and the side that it is of."""

    side: str
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output)


@dataclass(frozen=True)
class FinalScoring:
    """What is scored of a final run. before_loss: of the study's base on the "before" rows."""

    settings: ScoreSettings
    before_loss: float | None


@dataclass(frozen=True)
class Job:
    """Runs that are trained together. until: they pause after this step; None: to their end.

    scoring: of final runs; None: they are runs of the rate search.
    """

    runs: tuple[UnitRun, ...]
    until: int | None = None
    scoring: FinalScoring | None = None


def run_of(side: Side, folder: Path, learning_rate: float, seed: int, save_steps: int) -> UnitRun:
    """A run of a side in `folder`."""
    changes = {
        "learning_rate": learning_rate,
        "seed": seed,
        "output": str(folder),
        "save_steps": side.config.save_steps or save_steps,
    }
    return UnitRun(side.name, side.config.model_copy(update=changes))


def group(runs: Sequence[UnitRun], size: int, at_once: int = 1) -> list[tuple[UnitRun, ...]]:
    """Which runs share a pass: at most `size`, in their order.

    at_once: passes that are trained beside one another; there are as many for each of them.
    """
    members: dict[str, list[UnitRun]] = {}
    for i, run in enumerate(runs):
        members.setdefault(_shared_key(run.config) or f"alone {i}", []).append(run)
    passes = list[tuple[UnitRun, ...]]()
    for together in members.values():
        count = math.ceil(len(together) / size / at_once) * at_once
        count = min(count, len(together))
        edges = [len(together) * i // count for i in range(count + 1)]
        passes += [tuple(together[i:j]) for i, j in pairwise(edges)]
    places = {run: i for i, run in enumerate(runs)}
    return sorted(passes, key=lambda members: places[members[0]])


def _shared_key(config: TrainConfig) -> str | None:
    """Runs with the same key can share a pass; None: this one is trained alone."""
    method = config.build_method()
    whole = config.modules_to_save or config.trainable_token_indices or config.data.add_tokens
    if whole or not method.mixes or method.replaces_weights:
        return None
    shape = ("micro_batch_size", "gradient_accumulation_steps", "max_tokens_per_micro_batch")
    return repr([getattr(config, key) for key in (*SHARED, *shape)])


def train_job(job: Job) -> dict[UnitRun, str]:
    """Train the runs of a job. Returns: why a run ended early, of those that did.

    Raises: ResourceError, Stopped: the study cannot go on; any error that is not lorica's own.
    """
    _align(job)
    if len(job.runs) > 1:
        errors, together = _attempt(job.runs, lambda: _train_together(job))
        if together:
            return errors
        _restart(job)  # a run that cannot share a pass: each by itself
    errors = {}
    for run in job.runs:
        errors |= _attempt([run], lambda run=run: _train_alone(run, job.until))[0]
    return errors


def _attempt(runs: Sequence[UnitRun], work: Callable[[], None]) -> tuple[dict[UnitRun, str], bool]:
    """({run: error} of runs that ended early, whether each run was trained or has its error)."""
    try:
        with progress.reporting(False):
            work()
    except (ResourceError, Stopped):
        raise
    except Exception as error:
        if not isinstance(error, LoricaError) and not memory_full(error):
            raise
        if len(runs) == 1:
            return {runs[0]: words_of(error, runs[0].folder)}, True
        if isinstance(error, LoricaError):
            by_folder = {str(run.folder): run for run in runs}
            early = {k: v for k, v in error.facts.items() if k in by_folder}
            if early:
                by_run = {by_folder[k]: words_of(v, by_folder[k].folder) for k, v in early.items()}
                return by_run, True
        return {}, False
    return {}, True


def words_of(error: Any, folder: Path) -> str:
    """An error in one line, without the place of the run."""
    text = error.summary if isinstance(error, LoricaError) else str(error)
    return " ".join(text.replace(str(folder), "the run").split()) or type(error).__name__


def _train_together(job: Job) -> None:
    runs = [run.folder if run.folder.is_dir() else run.config for run in job.runs]
    train_each(runs, until=job.until, show=False)


def _train_alone(run: UnitRun, until: int | None) -> None:
    if run.folder.is_dir():
        train(resume=run.folder, until=until, show=False)
    else:
        train(run.config, until=until, show=False)


def _align(job: Job) -> None:
    """Put all runs back to the newest step that each has a checkpoint of; if none, to the start."""
    each = [{path.name for path in _checkpoints(run.folder)} for run in job.runs]
    common = max(set.intersection(*each), default=None)
    for run in job.runs:
        if common is None:
            shutil.rmtree(run.folder, ignore_errors=True)
            continue
        for path in _checkpoints(run.folder):
            if path.name > common:
                commit.remove(path)
                (run.folder / RESULTS).unlink(missing_ok=True)


def _restart(job: Job) -> None:
    """Remove what an attempt to train the runs together has left of those that are new."""
    for run in job.runs:
        if not _checkpoints(run.folder):
            shutil.rmtree(run.folder, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    if not plain_files.is_folder(folder):
        return []
    commit.sweep(folder / "checkpoints")
    return checkpoints_in(folder / "checkpoints")


def validation_loss(folder: Path, step: int) -> float | None:
    """The loss of a run on its validation rows after `step`; None: it was not measured."""
    steps, losses = by_step(read_events(folder), "eval", "loss")
    return dict(zip(steps, losses, strict=True)).get(step)


def remove_run(folder: Path) -> None:
    """Remove all of a run that is not needed any more."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that has ended."""
    for path in _checkpoints(folder):
        commit.remove(path)
