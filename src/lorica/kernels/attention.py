"""Attention over a packed batch: every row sees only itself.

The reference is a call per row. There is no mask of T x T, and no work between rows. A row may
share a prefix with rows before it in the batch: the tokens of the prefix are gathered, and the row
is computed as if it were there whole. The outputs at the prefix are dropped. With its queries the
call is a plain causal one, which is faster on the CPU than a call with a mask.

Where a GPU has a kernel for rows of different lengths, all rows are one call: kernels.varlen.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorica.kernels.varlen import has_varlen, varlen_attention

Shared = Sequence[Sequence[tuple[int, int]]]
"""For each row, (start, stop) of the pieces of the batch that make up its prefix."""
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
    lengths: tokens of each row, without a prefix that it shares with rows before it; they sum to T.
    shared: the prefix of each row; None: there are no shared prefixes.
    window: a position sees itself and the window - 1 before it; None: all before it.
    front: keys and values (K, N, D) that every position of every row sees as well.

    Returns: (1, H, T, D).
    """
    if front is None and not dropout and has_varlen(query, key):
        return _in_one_call(
            query, key, value, lengths, shared, scale=scale, causal=causal, window=window
        )
    groups = query.shape[1] // key.shape[1]
    ahead = None if front is None else [t.unsqueeze(0) for t in front]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        ahead = ahead and [t.repeat_interleave(groups, dim=1) for t in ahead]
    rows = []
    with _backends(query):
        tensors = (_rows(t, lengths, shared) for t in (query, key, value))
        for length, q, k, v in zip(lengths, *tensors, strict=True):
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


def _in_one_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    shared: Shared | None,
    **options: Any,
) -> Tensor:
    """`attention_by_row` by kernels.varlen."""
    if shared is None:
        return varlen_attention(query, key, value, lengths, **options)
    whole = [
        own + sum(stop - start for start, stop in prefix)
        for own, prefix in zip(lengths, shared, strict=True)
    ]
    q, k, v = (torch.cat(list(_rows(t, lengths, shared)), dim=2) for t in (query, key, value))
    rows = varlen_attention(q, k, v, whole, **options).split(whole, dim=2)
    return torch.cat([row[:, :, -n:] for row, n in zip(rows, lengths, strict=True)], dim=2)


def _rows(t: Tensor, lengths: list[int], shared: Shared | None) -> Sequence[Tensor]:
    """t (1, H, T, D) as its rows, each with its prefix."""
    if shared is None:
        return t.split(lengths, dim=2)
    stops = list(accumulate(lengths))
    own = zip([0, *stops], stops, strict=False)
    return _Gathered.apply(t, [[*prefix, rest] for prefix, rest in zip(shared, own, strict=True)])


class _Gathered(torch.autograd.Function):
    """Pieces (start, stop) of a packed t (1, H, T, D), concatenated to one tensor for each row.

    The last piece of a row is its own tokens, the others are of rows before it. The own pieces of
    all rows make up t. The gradient of a plain slice is as large as t, for every slice; here all
    gradients are added up in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, rows: Shared) -> tuple[Tensor, ...]:
        ctx.rows, ctx.shape = rows, t.shape
        return tuple(torch.cat([t[:, :, a:b] for a, b in pieces], dim=2) for pieces in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].new_empty(ctx.shape)
        for pieces, gradient in zip(ctx.rows, gradients, strict=True):
            *of_prefix, own = gradient.split([b - a for a, b in pieces], dim=2)
            for (a, b), part in zip(pieces, of_prefix, strict=False):  # of rows before this row
                total[:, :, a:b].add_(part)
            a, b = pieces[-1]
            total[:, :, a:b].copy_(own)  # the first gradient there
        return total, None


def _backends(like: Tensor) -> AbstractContextManager[Any]:
    return sdpa_kernel(LENGTHS_VARY) if like.is_cuda else nullcontext()


def _after(n: int, query: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask (T, n + T) of a row with `n` keys in front that all see; None: no mask."""
    t = query.shape[2]
    if mask is None:
        if not causal:
            return None
        mask = _band(t, t, query.device)
    return torch.cat([mask.new_ones(t, n), mask], dim=1)


def _band(n: int, window: int, device: torch.device) -> Tensor:
    """(n, n) bool: True where position i may see position j."""
    positions = torch.arange(n, device=device)
    distance = positions.unsqueeze(1) - positions
    return (distance >= 0) & (distance < window)
