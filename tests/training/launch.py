"""Start the processes of a run with torchrun, as a user does: gloo, on this machine."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("processes_script.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def torchrun(
    *words: str, processes: int = 2, flags: Sequence[str] = (), timeout: int = 200, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run `words` (a script or -m module, with its arguments) in several processes."""
    command = [*TORCHRUN, f"--nproc-per-node={processes}", *flags, *words]
    with subprocess.Popen(
        command,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes; killed, it would leave them behind
            process.communicate(timeout=60)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def train_all(runs: Sequence[dict[str, Any]], *, processes: int = 2, **more: str) -> None:
    """Train one run after another, all in the same processes: their start takes seconds.

    more: variables of their environment.
    """
    done = torchrun(str(SCRIPT), json.dumps(list(runs)), processes=processes, **more)
    assert done.returncode == 0, done.stderr[-3000:]
