"""Keep the memory that a training step frees, so that the next step has it at once (glibc).

A sharded run returns it instead: it frees and gathers every block in every step, to save memory.

glibc returns a large block to the system when it is freed, and asks for it again a moment later;
the system then hands it out page by page, filled with zeros. On a CPU this takes up to a quarter of
the time of a training step.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
NEVER, MAX_MMAP_THRESHOLD, MIN_MMAP_THRESHOLD = -1, 1 << 30, 1 << 17


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on. Returns: whether that worked (glibc only)."""
    return _set_thresholds(MAX_MMAP_THRESHOLD, NEVER)


def return_freed_memory() -> bool:
    """Return freed blocks to the system from now on. Returns: whether that worked (glibc only)."""
    return _set_thresholds(MIN_MMAP_THRESHOLD, MIN_MMAP_THRESHOLD)


def _set_thresholds(mmap: int, trim: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, mmap) and mallopt(TRIM_THRESHOLD, trim))
