"""Peak memory of a device, in bytes, as training and generation report it."""

import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """The most bytes allocated on a CUDA device; for other devices, of the process so far.

    None where the operating system does not report it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
