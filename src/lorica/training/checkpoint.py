"""Checkpoints: everything that the next step depends on, in folders that are whole or absent.

    checkpoints/step-00000200/  adapter.safetensors  optimizer.safetensors  state.json
                                best.safetensors  (early stopping: the best adapter so far)
                                schedule.safetensors  (scores and the like of a method's schedule)

There is no random state to save: every draw of a step follows from (seed, step, process).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorica import plain_files
from lorica.base.fingerprint import Fingerprint, grade
from lorica.errors import BaseError, DataError, FileError
from lorica.formats import commit

STEP = "step-"


@dataclass
class Progress:
    """Where a run is.

    step: optimizer steps done. rows: data position, rows seen. tokens, seconds: worked so far.
    smooth, lowest: smoothed training loss, and its lowest value (nats per label token).
    best_loss, best_step, waited: evaluation loss, where it was, evaluations since.
    first_eval: evaluation loss before training.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    smooth: float | None = None
    lowest: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    waited: int = 0
    first_eval: float | None = None
    last_eval: float | None = None


@dataclass
class Checkpoint:
    progress: Progress
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    schedule: dict[str, Tensor]
    best: dict[str, Tensor] | None
    data: str
    """Digest of the rows: a run goes on with the rows that it began with."""
    base: Fingerprint
    """And on the base that it began with."""


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint under `folder`, then remove all but the newest `keep`."""
    path = folder / f"{STEP}{checkpoint.progress.step:08d}"
    with commit.folder(path, replace=True) as staging:
        commit.write_tensors(staging / "adapter.safetensors", checkpoint.adapter)
        commit.write_tensors(staging / "optimizer.safetensors", checkpoint.optimizer)
        commit.write_tensors(staging / "schedule.safetensors", checkpoint.schedule)
        if checkpoint.best is not None:
            commit.write_tensors(staging / "best.safetensors", checkpoint.best)
        files = {file.name: commit.digest(file) for file in staging.iterdir()}
        commit.write_json(staging / "state.json", {
            "progress": asdict(checkpoint.progress),
            "data": checkpoint.data,
            "base": checkpoint.base.as_dict(),
            "files": files,
        })  # fmt: skip
    for old in steps(folder)[:-keep]:
        commit.remove(old)
    return path


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return [folder / name for name in plain_files.names_in(folder) if name.startswith(STEP)]


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None if there is none yet.

    Raises: FileError if it is damaged: an older one is not taken in its place silently.
    """
    commit.sweep(folder)
    found = steps(folder)
    if not found:
        return None
    path = found[-1]
    plain_files.is_folder(path)
    try:
        state: dict[str, Any] = commit.read_json(path / "state.json")
        commit.check_digests(path, state["files"])
        best = path / "best.safetensors"
        return Checkpoint(
            progress=Progress(**state["progress"]),
            adapter=commit.read_tensors(path / "adapter.safetensors"),
            optimizer=commit.read_tensors(path / "optimizer.safetensors"),
            schedule=commit.read_tensors(path / "schedule.safetensors"),
            best=commit.read_tensors(best) if plain_files.is_file(best) else None,
            data=state["data"],
            base=Fingerprint(**state["base"]),
        )
    except (FileError, KeyError, TypeError) as error:
        raise FileError(
            f"the checkpoint {path} is damaged.",
            why=_why(error),
            fix=f"delete {path} to go on from the one before it",
        ) from None


def _why(error: Exception) -> str:
    """An error in one line, without its fix, which is another one here."""
    if not isinstance(error, FileError):
        return f"state.json: {error!r}"
    return "; ".join([error.what, *(f"{k}: {v}" for k, v in error.facts.items())])


def check_same(checkpoint: Checkpoint, *, data: str, base: Fingerprint, run: Path) -> None:
    """Raises: DataError, BaseError if the rows or the base are not those the run began with."""
    if checkpoint.data != data:
        raise DataError(
            f"the rows are not those that {run} began with.",
            fix="put the data back as it was, or start a new run",
        )
    verdict = grade(checkpoint.base, base)
    if verdict != "same":
        raise BaseError(
            f"{base.path or 'this'} is not the base that {run} began with: {verdict}.",
            fix="put the base back as it was, or start a new run",
        )
