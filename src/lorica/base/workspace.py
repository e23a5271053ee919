"""One buffer per thread and dtype for weights that are unpacked for one product, on the CPU.

What a step frees stays with the process (training/freed_memory.py). If each unpacked weight were
allocated anew, a small tensor would soon lie where the last one was, and the next weight would need
more memory: a step on an nf4 base of 212 million parameters took 400 MB more than its tensors.
"""

import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_BUFFERS = _Buffers()


def buffer(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) on the CPU. The next call in this thread may give the same memory."""
    n, held = rows * columns, _BUFFERS.by_dtype.get(dtype)
    if held is None or len(held) < n:
        with torch.inference_mode(False):  # it outlives the mode in which it is first needed
            held = _BUFFERS.by_dtype[dtype] = torch.empty(n, dtype=dtype)
    return held[:n].view(rows, columns)
