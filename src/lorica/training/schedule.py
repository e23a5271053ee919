"""The learning rate of a step, as a pure function: nothing of it needs saving."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Literal["cosine", "linear", "constant"]


def factor(step: int, *, total: int, warmup: int, kind: Schedule) -> float:
    """What the peak learning rate is multiplied by at `step`.

    step: optimizer steps, counted from 0; total: steps of the run, 0 <= warmup < total.
    Rises linearly over `warmup` steps (the first step already moves), then falls to 0 at
    `total`: half a cosine (Loshchilov & Hutter, "SGDR", 2016, arXiv:1608.03983, eq. 5, without
    restarts), a straight line, or not at all.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if kind == "linear" else 1.0


def order(rows: int, seed: int, start: int, count: int) -> list[int]:
    """Which rows the run sees at positions start .. start + count - 1 of its endless stream.

    The stream is one shuffle of all rows after another; each follows from (seed, pass).
    """
    picked: list[int] = []
    while len(picked) < count:
        epoch, place = divmod(start + len(picked), rows)
        shuffle = _shuffled(rows, seed, epoch)
        picked += shuffle[place : place + count - len(picked)].tolist()
    return picked


@lru_cache(maxsize=4)  # runs at once have each their own
def _shuffled(rows: int, seed: int, epoch: int) -> "Tensor":
    """All rows in the order of one pass; of 300,000 it takes some milliseconds to make."""
    import torch

    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=draw)
