"""Release the memory of weights that were read through the memory map of their file.

transformers maps a safetensors file as a whole. A page that was read counts as memory of the
process until the map is closed, which happens when the last tensor of the file is freed. On Linux
the pages of one tensor can be released earlier; they are read from the file again if needed.

The map is private: a page that was written to is a copy, and the file does not have what was
written. Such a page would be lost, so a tensor with one is left alone.
"""

import ctypes
import mmap
from pathlib import Path

import numpy as np
from torch import Tensor

MAPS = Path("/proc/self/maps")
PAGEMAP = Path("/proc/self/pagemap")
DONTNEED = 4  # of madvise(2), on Linux
HELD, OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)
"""Bits of a page in PAGEMAP: in memory or in swap; it is a page of a file."""


def mapped_weights() -> list[tuple[int, int]]:
    """(start, end) of each address range that maps a safetensors file; empty outside of Linux.

    A file of the hub's cache is a link to a blob, whose name is a hash.
    """
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and (columns[5].endswith(".safetensors") or "/blobs/" in columns[5]):
            start, end = columns[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def is_mapped(weight: Tensor, ranges: list[tuple[int, int]]) -> bool:
    """Whether `weight` lies in one of the mapped ranges."""
    if weight.device.type != "cpu":
        return False
    start = weight.data_ptr()
    return any(a <= start and start + weight.nbytes <= b for a, b in ranges)


def release_pages(weight: Tensor, ranges: list[tuple[int, int]]) -> None:
    """Release the pages that hold `weight` alone, if it is in one of the mapped ranges."""
    if not is_mapped(weight, ranges):
        return
    size = mmap.PAGESIZE
    start, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
    start, end = -(-start // size) * size, end // size * size
    if end > start and not _is_written(start, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


def _is_written(start: int, end: int) -> bool:
    """Whether a page between these addresses is a copy that was written to, or may be one."""
    first, count = start // mmap.PAGESIZE, (end - start) // mmap.PAGESIZE
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            file.seek(8 * first)
            pages = np.frombuffer(file.read(8 * count), np.uint64)
    except OSError:
        return True
    return len(pages) < count or bool((((pages & HELD) != 0) & ((pages & OF_FILE) == 0)).any())
