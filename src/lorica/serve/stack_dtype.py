"""Up to how many rows of a batch the factors of adapters are better stacked in float32.

Thin products in bfloat16 cost most processors more than the bytes that they save: on one AMD core
with AVX-512, one row of one adapter takes 23 microseconds in float32 and 49 in bfloat16. Processors
with matrix units differ, so it is measured once for a model, in about 20 ms.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from lorica.core.site import Site
from lorica.kernels.stacked import add_each, add_one

ROWS = (1, 8, 32)
RANK, COPIES, REPEATS = 16, 8, 5
MARGIN = 0.9
"""What float32 must take of the time at most. Noise then hardly changes the result."""


def float32_rows(sites: Sequence[Site]) -> int:
    """The largest of `ROWS` at which float32 is faster; 0: at none.

    sites: linear layers. It is measured at their most frequent shape, with one adapter for all
    rows and with one for each.
    """
    kinds = Counter((s.out_features, s.in_features, s.like.dtype, s.like.device) for s in sites)
    if not kinds:
        return 0
    outputs, inputs, dtype, device = kinds.most_common(1)[0][0]
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return 0
    best = 0
    for rows in ROWS:
        narrow, wide = (_seconds(rows, outputs, inputs, dtype, t) for t in (dtype, torch.float32))
        if wide > MARGIN * narrow:
            break
        best = rows
    return best


@torch.no_grad()
def _seconds(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, stacked: torch.dtype
) -> float:
    """The time of both updates over `COPIES` layers, so that factors come from memory."""
    x, y = torch.ones(rows, 1, inputs, dtype=dtype), torch.ones(rows, 1, outputs, dtype=dtype)
    pairs = [
        (
            torch.zeros(rows, RANK, inputs, dtype=stacked),
            torch.zeros(rows, outputs, RANK, dtype=stacked),
        )
        for _ in range(COPIES)
    ]

    def one() -> None:
        for a, b in pairs:
            add_one(x, y, a[0], b[0])

    def each() -> None:
        for a, b in pairs:
            add_each(x, y, a, b)

    return _best(one) + _best(each)


def _best(run: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
