"""What a step frees is kept for the next one.

glibc hands a large block back to the system when it is freed, and asks for it again a moment
later; the system then gives it page by page, filled with zeros. On a CPU that is up to a quarter of
a training step, spent on no number at all.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER, MOST_MMAP = -1, 1 << 30


def keep() -> bool:
    """Let the process keep what it frees, from now on. Returns: whether it can (glibc alone)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(MMAP_THRESHOLD, MOST_MMAP) and mallopt(TRIM_THRESHOLD, NEVER)
    return bool(kept)
