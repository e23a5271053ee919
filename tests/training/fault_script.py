"""`lorica` as one of several processes, one of which gets a fault: FAULT RANK WORD...

The fault is in the first attempt alone, not after a restart. "{rank}" in a word is the process.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

from lorica import cli  # noqa: E402
from lorica.formats import commit  # noqa: E402
from lorica.training import checkpoint, finish, loop, processes  # noqa: E402


def killed(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, name: str, act: Callable[..., None]) -> None:
    """Act in place of a function of the loop, in this step (counted from 0)."""
    own = getattr(loop, name)

    def faulty(state: Any, *arguments: Any) -> Any:
        return (act if state.progress.step == step else own)(state, *arguments)

    setattr(loop, name, faulty)


def in_checkpoint(act: Callable[..., None]) -> None:
    """Act where the state of the second checkpoint is to be written: its tensors are already."""
    own = commit.write_json

    def faulty(path: Path, *arguments: Any) -> None:
        second = path.name == "state.json" and checkpoint.steps(path.parents[1])
        (act if second else own)(path, *arguments)

    commit.write_json = faulty


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def bug(*_: Any) -> None:
    raise KeyError("planted")


FAULTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "killed before the first checkpoint": lambda: at_step(1, "apply_update", killed),
    "killed in a step": lambda: at_step(4, "apply_update", killed),
    "killed in an evaluation": lambda: at_step(4, "evaluate", killed),
    "killed in a checkpoint": lambda: in_checkpoint(killed),
    "killed at the end": lambda: setattr(finish, "_write", killed),
    "disk full": lambda: in_checkpoint(disk_full),
    "bug": lambda: at_step(3, "apply_update", bug),
    "other version": lambda: setattr(processes, "versions", lambda: {"lorica": "0.0.1"}),
}

if __name__ == "__main__":
    fault, rank, *words = sys.argv[1:]
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if os.environ["RANK"] == rank and first:
        FAULTS[fault]()
    sys.exit(cli.run([word.replace("{rank}", os.environ["RANK"]) for word in words]))
