"""Attention over rows that lie end to end in one sequence: every row sees itself only.

The reference is a call per row. There is no mask of T x T, and no work between rows. A row may
begin with tokens that stand in the line already, as part of rows before it: they are gathered, and
the row is worked out as if it stood there whole. Queries of its beginning come out as they did
before, and are dropped; with them the call is a plain causal one, which the CPU's kernel makes in
less time than one with a mask.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Shared = Sequence[Sequence[tuple[int, int]]]
"""For each row (start, stop) of the parts of the line that it begins with. Its own follow."""
# cuDNN makes a plan for each new length: 40 lengths took 9.3 s on an H100, and 0.06 s without it.
LENGTHS_VARY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    causal: bool = True,
    window: int | None = None,
    front: tuple[Tensor, Tensor] | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Softmax attention inside each row.

    query: (1, H, T, D). key, value: (1, K, T, D) with K dividing H (grouped queries).
    lengths: tokens of each row, those that it shares with rows before it left out; they sum to T.
    shared: those, for each row; None: there are none.
    window: a position sees itself and the window - 1 before it; None: all before it.
    front: keys and values (K, N, D) that every position of every row sees as well.

    Returns: (1, H, T, D).
    """
    groups = query.shape[1] // key.shape[1]
    ahead = None if front is None else [t.unsqueeze(0) for t in front]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        ahead = ahead and [t.repeat_interleave(groups, dim=1) for t in ahead]
    rows = []
    with _backends(query):
        every = (_rows(t, lengths, shared) for t in (query, key, value))
        for length, q, k, v in zip(lengths, *every, strict=True):
            mask = _band(q.shape[2], window, q.device) if window and q.shape[2] > window else None
            if ahead is not None:
                mask = _after(ahead[0].shape[2], q, mask, causal)
                k, v = torch.cat([ahead[0], k], dim=2), torch.cat([ahead[1], v], dim=2)
            rows.append(
                F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    dropout_p=dropout,
                    scale=scale,
                    is_causal=causal and mask is None,
                )[:, :, -length:]
            )
    return torch.cat(rows, dim=2)


def _rows(t: Tensor, lengths: list[int], shared: Shared | None) -> Sequence[Tensor]:
    """t (1, H, T, D) as its rows, each with what it begins with."""
    if shared is None:
        return t.split(lengths, dim=2)
    stops = list(accumulate(lengths))
    own = zip([0, *stops], stops, strict=False)
    return _Gathered.apply(t, [[*begins, part] for begins, part in zip(shared, own, strict=True)])


class _Gathered(torch.autograd.Function):
    """Parts (start, stop) of the line t (1, H, T, D), joined to one tensor for each row: its own
    is the last, the others are of rows before it. Together the rows' own parts are the line.

    The gradient of a plain slice is as large as the line, and every row would make some: here it is
    added up in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, rows: Shared) -> tuple[Tensor, ...]:
        ctx.rows, ctx.shape = rows, t.shape
        return tuple(torch.cat([t[:, :, a:b] for a, b in parts], dim=2) for parts in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        line = gradients[0].new_empty(ctx.shape)
        for parts, gradient in zip(ctx.rows, gradients, strict=True):
            *begins, own = gradient.split([b - a for a, b in parts], dim=2)
            for (a, b), piece in zip(parts, begins, strict=False):  # of rows before this one
                line[:, :, a:b].add_(piece)
            a, b = parts[-1]
            line[:, :, a:b].copy_(own)  # no row before has it
        return line, None


def _backends(like: Tensor) -> AbstractContextManager[Any]:
    return sdpa_kernel(LENGTHS_VARY) if like.is_cuda else nullcontext()


def _after(n: int, query: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask (T, n + T) of a row with `n` keys in front of it that all see; None: all see all."""
    t = query.shape[2]
    if mask is None:
        if not causal:
            return None
        mask = _band(t, t, query.device)
    return torch.cat([mask.new_ones(t, n), mask], dim=1)


def _band(n: int, window: int, device: torch.device) -> Tensor:
    """(n, n) bool: True where position i may see position j."""
    place = torch.arange(n, device=device)
    back = place.unsqueeze(1) - place
    return (back >= 0) & (back < window)
