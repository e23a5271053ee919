"""A run on the device that is killed and resumed, beside one that is not.

On a CPU both end with the same bits. Kernels of a GPU may add in another order, so that there the
largest difference is reported.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STEPS, SAVE, TIMEOUT = 40, 5, 240


def measure() -> dict[str, Any]:
    """The step at which the run was killed, and the largest difference between the adapters."""
    from safetensors.torch import load_file

    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = folder / "rows.jsonl"
        _run("-m", "world.write", "tickets", "--rows", "400", "--seed", "0", "--out", str(rows))
        whole, killed = folder / "whole", folder / "killed"
        _run(*_command(rows, whole))
        with subprocess.Popen([sys.executable, *_command(rows, killed)]) as process:
            _wait_for_checkpoint(killed, process)
            process.send_signal(signal.SIGKILL)
        done = max(int(p.name.split("-")[1]) for p in (killed / "checkpoints").glob("step-*"))
        _run("-m", "lorica", "train", "--resume", str(killed))
        name = "adapter/adapter_model.safetensors"
        first, second = (load_file(run / name) for run in (whole, killed))
        worst = max(float((first[k] - second[k]).abs().max()) for k in first)
    return {"killed_after_step": done, "steps": STEPS, "largest_difference": worst}


def _command(rows: Path, output: Path) -> list[str]:
    settings = {
        "base": "bundled",
        "data": str(rows),
        "max_steps": str(STEPS),
        "save_steps": str(SAVE),
        "output": str(output),
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["-m", "lorica", "train", *flags]


def _run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=TIMEOUT)


def _wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the first checkpoint is there. Raises: RuntimeError if the run ends before."""
    stop = time.monotonic() + TIMEOUT
    while not any((run / "checkpoints").glob("step-*")):
        if process.poll() is not None or time.monotonic() > stop:
            raise RuntimeError(f"the run ended with {process.poll()} before its first checkpoint")
        time.sleep(0.05)
