"""The device on which `lorica train` would train here, found without torch."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from lorica.plan.devices import Device, device_named, devices

SECONDS = 5.0
"""How long nvidia-smi may take."""
QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


def current_device() -> Device:
    """The first NVIDIA card, if there is one and torch was built for CUDA; else this processor."""
    if not _torch_has_cuda() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return device_named("cpu")
    command = shutil.which("nvidia-smi")
    if command is None:
        return device_named("cpu")
    try:
        answer = subprocess.run(
            [command, *QUERY], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        name, memory = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
        return _card(name, int(memory))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return device_named("cpu")


def _torch_has_cuda() -> bool:
    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return False


def _card(name: str, mebibytes: int) -> Device:
    """The row of the table whose name is in that of the card and whose memory is nearest."""
    words = name.lower().replace(" ", "").replace("-", "")
    alike = [d for key, d in devices().items() if key.partition("-")[0] in words]
    size = mebibytes * 2**20
    near = min(alike, key=lambda d: abs(d.memory_bytes - size), default=None)
    if near is not None and abs(near.memory_bytes - size) < 0.1 * size:
        return near
    return device_named(f"{mebibytes}MiB")
