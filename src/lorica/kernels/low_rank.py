"""y + s B A x, the update that most methods make, in one pass forward and one backward.

    forward     P = A X^T          Y += s P^T B^T                 Y, what the layer gave, in place
    backward    Z = s B^T dY^T     dA = Z X    dB = s (P dY)^T    dX = Z^T A

Six thin products, and nothing is computed twice: P (R numbers a token) is kept, X only if A is
trained. Dropout keeps the places of what it drops. The products have R as the number of rows,
which some CPU libraries multiply several times faster than R columns. Where the rows of a batch
have factors of their own, the same is done for each run of tokens: no token meets the others'.

    N tokens   I in_features   O out_features   R rank   C pairs of factors
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorica.kernels.dropout import drop_, dropped

Span = tuple[int, int, int]
"""(start, stop, which): tokens start <= n < stop have pair `which` of the factors."""


def reference(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, dropout: float = 0.0
) -> Tensor:
    """`low_rank`, written out."""
    h = F.linear(F.dropout(x.to(y.dtype), dropout), a.to(y.dtype))
    return torch.add(y, F.linear(h, b.to(y.dtype)), alpha=scale)


def low_rank(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, dropout: float = 0.0
) -> Tensor:
    """y + scale B A x; `y` is overwritten where it can be.

    x: (..., I), y: (..., O), a: (R, I), b: (O, R). The products are made in the dtype of y.
    dropout: probability of dropping a number of x, in [0, 1).

    Returns: (..., O), in the dtype of y. Its gradient has no gradient of its own.
    """
    if torch.compiler.is_compiling():  # the compiler fuses it itself
        return reference(x, y, a, b, scale, dropout)
    return _applied(x, y, [(0, y.shape[:-1].numel(), 0)], [a, b], [scale], dropout)


def rows_reference(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    spans: Sequence[Span],
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """`low_rank_rows`, written out."""
    tokens, made, done = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), []
    for start, stop, i in spans:
        done.append(reference(tokens[start:stop], made[start:stop], a[i], b[i], scale, dropout))
    return torch.cat(done).view(y.shape)


def low_rank_rows(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    spans: Sequence[Span],
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """`low_rank` with a pair of factors for each span of tokens.

    a: (C, R, I), b: (C, O, R). spans: one after another, they cover all tokens of x.
    """
    if torch.compiler.is_compiling():
        return rows_reference(x, y, a, b, spans, scale, dropout)
    pairs = [factor for pair in zip(a.unbind(), b.unbind(), strict=True) for factor in pair]
    return _applied(x, y, spans, pairs, [scale] * len(a), dropout)


def low_rank_parts(
    x: Tensor, y: Tensor, parts: Sequence[tuple[Tensor, Tensor, float]], sizes: Sequence[int]
) -> Tensor:
    """`low_rank` with factors of its own, (a, b, scale), for each of these runs of tokens.

    a: (R, I), b: (O, R), R as it likes. sizes: tokens of each run; they sum to those of x.
    """
    spans, stop = [], 0
    for i, size in enumerate(sizes):
        start, stop = stop, stop + size
        spans.append((start, stop, i))
    factors = [factor for a, b, _ in parts for factor in (a, b)]
    return _applied(x, y, spans, factors, [scale for _, _, scale in parts], 0.0)


def _applied(
    x: Tensor,
    y: Tensor,
    spans: Sequence[Span],
    factors: list[Tensor],
    scales: Sequence[float],
    p: float,
) -> Tensor:
    gone = dropped(x.shape, p, x.device) if p else None
    found: Any = _LowRank.apply(x, y, spans, [s / (1 - p) for s in scales], gone, *factors)
    return found


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        y: Tensor,
        spans: Sequence[Span],
        scales: Sequence[float],
        gone: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        small = [factor.to(y.dtype) for factor in factors]
        tokens = _tokens(x, gone, y.dtype)
        # A view of something else cannot be overwritten, nor what a layer passed on as it was.
        own = y.is_contiguous() and not y._is_view() and y.data_ptr() != x.data_ptr()
        out = y if own else y.clone(memory_format=torch.contiguous_format)
        kept = []
        for (_, _, i), t, made in _cut(spans, tokens, out.view(len(tokens), -1)):
            a, b = small[2 * i : 2 * i + 2]
            p = a @ t.T  # (R, n)
            made.addmm_(p.T, b.T, alpha=scales[i])
            kept.append(p)
        if own:
            ctx.mark_dirty(y)
        learns = any(ctx.needs_input_grad[5::2])
        ctx.save_for_backward(x if learns else None, gone, *small, *kept)
        ctx.spans, ctx.scales, ctx.shape = spans, scales, x.shape
        ctx.dtypes = x.dtype, *(factor.dtype for factor in factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gone, *rest = ctx.saved_tensors
        spans, needs = ctx.spans, ctx.needs_input_grad
        small, kept = rest[: -len(spans)], rest[-len(spans) :]
        given = grad.reshape(-1, grad.shape[-1])  # (N, O)
        tokens = given if x is None else _tokens(x, gone, grad.dtype)  # given: not read then
        dx = given.new_empty(len(given), ctx.shape[-1]) if needs[0] else None
        found: list[Tensor | None] = [None] * len(small)
        for ((start, stop, i), dy, t), p in zip(_cut(spans, given, tokens), kept, strict=True):
            (a, b), (for_a, for_b) = small[2 * i : 2 * i + 2], needs[5 + 2 * i : 7 + 2 * i]
            if for_b:
                _add(found, 2 * i + 1, (p @ dy).mul_(ctx.scales[i]).T)
            if not (for_a or needs[0]):
                continue
            z = (b.T @ dy.T).mul_(ctx.scales[i])  # (R, n)
            if for_a:
                _add(found, 2 * i, z @ t)
            if dx is not None:
                torch.mm(z.T, a, out=dx[start:stop])
        if dx is not None:
            dx = dx.view(ctx.shape).to(ctx.dtypes[0])
            dx = dx if gone is None else drop_(dx, gone)
        pairs = zip(found, ctx.dtypes[1:], strict=True)
        return dx, grad, None, None, None, *(d if d is None else d.to(t) for d, t in pairs)


def _cut(spans: Sequence[Span], *each: Tensor) -> list[tuple[Any, ...]]:
    """(span, its tokens of every tensor) for each span."""
    if len(spans) == 1:
        return [(spans[0], *each)]
    return [(span, *(t[span[0] : span[1]] for t in each)) for span in spans]


def _tokens(x: Tensor, gone: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x as (N, I), with what is dropped at zero."""
    if gone is None:
        x = x.to(dtype)
    else:
        x = drop_(x.to(dtype, copy=True, memory_format=torch.contiguous_format), gone)
    return x.reshape(-1, x.shape[-1])


def _add(found: list[Tensor | None], i: int, gradient: Tensor) -> None:
    before = found[i]
    found[i] = gradient if before is None else before.add_(gradient)
