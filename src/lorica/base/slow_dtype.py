"""Whether the CPU is slow at a dtype; measured, not looked up."""

import time
from functools import cache

import torch

TIMES = 3.0
"""A dtype is slow if its products take this many times as long as those in float32."""


def slow_dtype_notice(dtype: torch.dtype) -> str | None:
    """A notice if the CPU is slow at `dtype`; None: it is not. The first call takes about 50 ms."""
    times = _seconds(dtype) / _seconds(torch.float32)
    if times < TIMES:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{name} is slow on this CPU: a product takes {times:.0f} times as long as in float32 "
        "(dtype: float32 takes more memory)"
    )


@cache
def _seconds(dtype: torch.dtype) -> float:
    """Of a product like those of a small layer; the shortest of several."""
    x, w = torch.ones(128, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    spent = []
    for _ in range(4):  # the first product is slower
        began = time.perf_counter()
        torch.matmul(x, w.T)
        spent.append(time.perf_counter() - began)
    return min(spent)
