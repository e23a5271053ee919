"""Peak memory of a device, in bytes, as training and generation report it."""

import re
import sys
from pathlib import Path

import torch

from lorica import plain_files
from lorica.errors import LoricaError

STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes allocated on a CUDA device; for other devices, of the process so far.

    None where the operating system does not report it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _high_water_mark()) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _high_water_mark() -> int | None:
    """The peak of this program; None where there is no such file (other systems than Linux).

    getrusage also counts the peak of the program that started this one, before its exec.
    """
    try:
        status = plain_files.read_bytes(STATUS)
    except LoricaError:
        return None
    peak = re.search(rb"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) * 1024 if peak else None
