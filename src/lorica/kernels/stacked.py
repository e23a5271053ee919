"""The low-rank updates of a batch whose rows have an adapter each: y[i] + B[k(i)] A[k(i)] x[i].

    add_one      all rows have one adapter                 two products
    add_each     row i has adapter i, one token a row      two batched products, no copy of x or y
    add_grouped  rows share adapters, one token a row      the same, over n groups of m rows
    add_looped   several tokens a row                      two products for each adapter

The factors of one pass are stacked once, when the batch changes, so that no pass gathers them: a
token reads every number of its factors once. Over the factors of all adapters side by side with a
mask, or over copies of the factors of each row, the products take up to twice as long on a CPU.

`y` is overwritten. The factors may be wider than `y` (float32 for a bfloat16 layer): thin products
in bfloat16 are slow on most CPUs.

    B rows   T tokens   I in_features   O out_features   R rank   n adapters   m rows of a group
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows of a batch, sorted into n groups of m places.

    rows: (n m,), the row in each place; a place that is left over repeats a row of its group.
    places: (B,), the place of each row. idle: (B, 1) bool, rows that have no adapter; None: all
    have one.
    """

    n: int
    rows: Tensor
    places: Tensor
    idle: Tensor | None

    @classmethod
    def of(cls, numbers: Sequence[int | None], n: int, device: torch.device) -> "Groups":
        """numbers: the adapter of each row, 0 <= k < n, each of them at least once; or None."""
        members: list[list[int]] = [[] for _ in range(n)]
        for row, k in enumerate(numbers):
            if k is not None:
                members[k].append(row)
        m = max(map(len, members))
        places = [0] * len(numbers)
        for k, rows in enumerate(members):
            for i, row in enumerate(rows):
                places[row] = k * m + i
        padded = [row for rows in members for row in rows + rows[:1] * (m - len(rows))]
        idle = [[k is None] for k in numbers]
        return cls(
            n,
            torch.tensor(padded, device=device),
            torch.tensor(places, device=device),
            torch.tensor(idle, device=device) if None in numbers else None,
        )


def reference(
    x: Tensor, y: Tensor, factors: Sequence[tuple[Tensor, Tensor]], numbers: Sequence[int | None]
) -> Tensor:
    """What all of these compute, written out. factors: (a (R, I), b (O, R)) of each adapter."""
    rows = [
        y[i] if k is None else y[i] + F.linear(F.linear(x[i], factors[k][0]), factors[k][1])
        for i, k in enumerate(numbers)
    ]
    return torch.stack(rows)


def add_one(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> None:
    """x: (..., I), y: (..., O), a: (R, I), b: (O, R). In place."""
    flat = y.view(-1, y.shape[-1])
    h = F.linear(x.reshape(-1, x.shape[-1]).to(a.dtype), a)
    if a.dtype == y.dtype:
        flat.addmm_(h, b.T)
    else:
        flat.add_(F.linear(h, b))


def add_each(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> None:
    """x: (B, 1, I), y: (B, 1, O), a: (B, R, I), b: (B, O, R). In place."""
    h = torch.bmm(x.to(a.dtype), a.mT)
    if a.dtype == y.dtype:
        y.baddbmm_(h, b.mT)
    else:
        y.add_(torch.bmm(h, b.mT))


def add_grouped(x: Tensor, y: Tensor, a: Tensor, b: Tensor, groups: Groups) -> None:
    """x: (B, 1, I), y: (B, 1, O), a: (n, R, I), b: (n, O, R). In place."""
    inputs, flat = x.reshape(-1, x.shape[-1]).to(a.dtype), y.view(-1, y.shape[-1])
    h = torch.bmm(inputs.index_select(0, groups.rows).view(groups.n, -1, x.shape[-1]), a.mT)
    added = torch.bmm(h, b.mT).view(-1, y.shape[-1]).index_select(0, groups.places)
    if groups.idle is not None:
        added.masked_fill_(groups.idle, 0)
    flat.add_(added)


def add_looped(
    x: Tensor,
    y: Tensor,
    factors: Sequence[tuple[Tensor, Tensor]],
    rows: Sequence[Tensor | slice],
) -> None:
    """x: (B, T, I), y: (B, T, O). rows: those of each adapter, (b,), or a run of them. In place."""
    for (a, b), own in zip(factors, rows, strict=True):
        if isinstance(own, slice):
            add_one(x[own], y[own], a, b)
        else:
            h = F.linear(x.index_select(0, own).to(a.dtype), a)
            y.index_add_(0, own, F.linear(h, b).to(y.dtype))


def rescale(y: Tensor, size: Tensor | None, shift: Tensor | None) -> None:
    """y * size + shift, in place; None: 1, and 0. size, shift: any shape that fits y."""
    if size is None:
        if shift is not None:
            y.add_(shift)
    elif shift is None:
        y.mul_(size)
    else:
        torch.addcmul(shift, y, size, out=y)
