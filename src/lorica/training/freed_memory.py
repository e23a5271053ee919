"""Keep the memory that a training step frees, so that the next step has it at once (glibc).

glibc returns a large block to the system when it is freed, and asks for it again a moment later;
the system then hands it out page by page, filled with zeros. On a CPU this takes up to a quarter of
the time of a training step.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
NEVER, MAX_MMAP_THRESHOLD = -1, 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on. Returns: whether that worked (glibc only)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, NEVER))
