"""Checkpoints: everything that the next step depends on, in folders that are complete or absent.

    checkpoints/step-00000200/  adapter.safetensors  optimizer.safetensors  state.json
                                schedule.safetensors  (step and scores of the method's schedule)
                                best.safetensors  (with early stopping: the best adapter so far)

No random state is saved: every draw of a step follows from (seed, step, process).

state.json holds a digest of itself, the digests of the other files, and what the run began with:
its settings, rows, base, length and number of processes. An edited file is refused; see
lorica.training.resume for what may change.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from lorica import plain_files
from lorica.base.fingerprint import Fingerprint
from lorica.errors import FileError, listed
from lorica.formats import commit

STEP = "step-"
STATE = "state.json"
FORMAT = 2
SELF = "digest"


@dataclass
class Progress:
    """How far a run is.

    step: optimizer steps done. rows: rows seen, the position in the data. tokens, seconds: so far.
    smooth, lowest: smoothed training loss, and its lowest value (nats per label token).
    best_loss, best_step, waited: lowest validation loss, its step, and evaluations since.
    first_eval, last_eval: validation loss before training, and the newest.
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


@dataclass(frozen=True)
class Origin:
    """What a run began with, beside its tensors.

    settings: as in config.yaml. data: digest of the rows. base: exact, with its tokenizer.
    total, warmup: optimizer steps of the run, and of its warm-up. processes: how many train.
    versions: of the libraries that wrote the checkpoint, and the machine that they ran on.
    """

    settings: dict[str, Any]
    data: str
    base: Fingerprint
    total: int
    warmup: int
    processes: int
    versions: dict[str, str]


@dataclass
class Checkpoint:
    progress: Progress
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    schedule: dict[str, Tensor]
    best: dict[str, Tensor] | None
    origin: Origin


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint under `folder`, then remove all but the newest `keep`."""
    path = folder / f"{STEP}{checkpoint.progress.step:08d}"
    with commit.folder(path, replace=True) as staging:
        commit.write_tensors(staging / "adapter.safetensors", checkpoint.adapter)
        commit.write_tensors(staging / "optimizer.safetensors", checkpoint.optimizer)
        commit.write_tensors(staging / "schedule.safetensors", checkpoint.schedule)
        if checkpoint.best is not None:
            commit.write_tensors(staging / "best.safetensors", checkpoint.best)
        state: dict[str, Any] = {
            "format": FORMAT,
            "progress": asdict(checkpoint.progress),
            "origin": asdict(checkpoint.origin),
            "files": {file.name: commit.digest(file) for file in staging.iterdir()},
        }
        commit.write_json(staging / STATE, {**state, SELF: _digest(state)})
    for old in steps(folder)[:-keep]:
        commit.remove(old)
    return path


def _digest(state: dict[str, Any]) -> str:
    """The sha256 of everything in state.json but this digest."""
    rest = {key: value for key, value in state.items() if key != SELF}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return [folder / name for name in plain_files.names_in(folder) if name.startswith(STEP)]


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None if there is none yet.

    Raises: FileError if it is damaged: an older one is never used silently instead.
    """
    commit.sweep(folder)
    paths = steps(folder)
    if not paths:
        return None
    path = paths[-1]
    plain_files.is_folder(path)
    try:
        state: dict[str, Any] = commit.read_json(path / STATE)
        _check_state(state, path)
        best = path / "best.safetensors"
        origin = state["origin"]
        return Checkpoint(
            progress=TypeAdapter(Progress).validate_python(state["progress"]),
            adapter=commit.read_tensors(path / "adapter.safetensors"),
            optimizer=commit.read_tensors(path / "optimizer.safetensors"),
            schedule=commit.read_tensors(path / "schedule.safetensors"),
            best=commit.read_tensors(best) if best.name in state["files"] else None,
            origin=Origin(**{**origin, "base": Fingerprint(**origin["base"])}),
        )
    except (FileError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"the checkpoint {path} is damaged.",
            why=_why(error),
            fix=f"delete {path} to resume from the one before it",
        ) from None


def _why(error: Exception) -> str:
    """An error in one line, without its fix."""
    if not isinstance(error, FileError):
        return f"state.json: {error!r}"
    return "; ".join([error.what, *(f"{k}: {v}" for k, v in error.facts.items())])


def _check_state(state: dict[str, Any], path: Path) -> None:
    """Raises: FileError if state.json, or a file that it names, is not what was written."""
    if state.get("format") != FORMAT:
        raise FileError(
            f"{STATE} has format {state.get('format', 1)}, and this lorica resumes from {FORMAT}",
            fix="end the run with the release of lorica that began it",
        )
    if state.get(SELF) != _digest(state):
        raise FileError(f"{STATE} was edited: its digest does not match")
    commit.check_digests(path, state["files"])
    name = f"{STEP}{state['progress']['step']:08d}"
    if path.name != name:
        raise FileError(f"it was saved as {name}")
    if extra := set(plain_files.names_in(path)) - {STATE, *state["files"]}:
        raise FileError(f"it holds files that were not saved: {listed(sorted(extra))}")
