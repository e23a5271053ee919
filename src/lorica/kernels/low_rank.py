"""y + s B A x, the update of most methods, as one autograd function.

    forward     P = A X^T          Y += s P^T B^T                 Y, the layer's output, in place
    backward    Z = s B^T dY^T     dA = Z X    dB = s (P dY)^T    dX = Z^T A

These are six thin products, and nothing is computed twice: the backward pass keeps P (R numbers a
token), and X only if A is trained. Dropout keeps the positions of what it drops. R is the number of
rows of the products, because some CPU libraries multiply R rows several times faster than R
columns. Where segments of a batch have factors of their own, the same is done for each segment.

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

    x: (..., I), y: (..., O), a: (R, I), b: (O, R). The products are computed in the dtype of y.
    dropout: probability of dropping an element of x, in [0, 1).

    Returns: (..., O), in the dtype of y. It can be differentiated once.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the reference
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
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    adapted = [
        reference(inputs[start:stop], outputs[start:stop], a[i], b[i], scale, dropout)
        for start, stop, i in spans
    ]
    return torch.cat(adapted).view(y.shape)


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

    a: (C, R, I), b: (C, O, R). spans: in order, and they cover all tokens of x.
    """
    if torch.compiler.is_compiling():
        return rows_reference(x, y, a, b, spans, scale, dropout)
    pairs = [factor for pair in zip(a.unbind(), b.unbind(), strict=True) for factor in pair]
    return _applied(x, y, spans, pairs, [scale] * len(a), dropout)


def low_rank_segments(
    x: Tensor, y: Tensor, factors: Sequence[tuple[Tensor, Tensor, float]], sizes: Sequence[int]
) -> Tensor:
    """`low_rank` with (a, b, scale) of its own for each segment of consecutive tokens.

    a: (R, I), b: (O, R); R may differ. sizes: tokens of each segment; they sum to those of x.
    """
    spans, stop = [], 0
    for i, size in enumerate(sizes):
        start, stop = stop, stop + size
        spans.append((start, stop, i))
    tensors = [tensor for a, b, _ in factors for tensor in (a, b)]
    return _applied(x, y, spans, tensors, [scale for _, _, scale in factors], 0.0)


def _applied(
    x: Tensor,
    y: Tensor,
    spans: Sequence[Span],
    factors: list[Tensor],
    scales: Sequence[float],
    p: float,
) -> Tensor:
    mask, scales = dropped(x.shape, p, x.device) if p else None, [s / (1 - p) for s in scales]
    if not torch.is_grad_enabled():  # twice as fast for one token as through autograd
        return _updated(x, y, spans, scales, mask, factors)[0]
    adapted: Any = _LowRank.apply(x, y, spans, scales, mask, *factors)
    return adapted


def _updated(
    x: Tensor,
    y: Tensor,
    spans: Sequence[Span],
    scales: Sequence[float],
    mask: Tensor | None,
    factors: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(y with the updates, the factors in its dtype, P of each span). y is overwritten if it can
    be."""
    cast = [factor.to(y.dtype) for factor in factors]
    inputs = _tokens(x, mask, y.dtype)
    # A view cannot be overwritten, nor an output that is the layer's input.
    in_place = y.is_contiguous() and not y._is_view() and y.data_ptr() != x.data_ptr()
    out = y if in_place else y.clone(memory_format=torch.contiguous_format)
    projections = []
    for (_, _, i), inputs_of_span, outputs in _cut(spans, inputs, out.view(len(inputs), -1)):
        a, b = cast[2 * i : 2 * i + 2]
        p = a @ inputs_of_span.T  # (R, n)
        outputs.addmm_(p.T, b.T, alpha=scales[i])
        projections.append(p)
    return out, cast, projections


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        y: Tensor,
        spans: Sequence[Span],
        scales: Sequence[float],
        mask: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        out, cast, projections = _updated(x, y, spans, scales, mask, factors)
        if out is y:
            ctx.mark_dirty(y)
        trains_a = any(ctx.needs_input_grad[5::2])
        ctx.save_for_backward(x if trains_a else None, mask, *cast, *projections)
        ctx.spans, ctx.scales, ctx.shape = spans, scales, x.shape
        ctx.dtypes = x.dtype, *(factor.dtype for factor in factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mask, *rest = ctx.saved_tensors
        spans, needs = ctx.spans, ctx.needs_input_grad
        cast, projections = rest[: -len(spans)], rest[-len(spans) :]
        dy_all = grad.reshape(-1, grad.shape[-1])  # (N, O)
        inputs = dy_all if x is None else _tokens(x, mask, grad.dtype)  # dy_all: it is not read
        dx = dy_all.new_empty(len(dy_all), ctx.shape[-1]) if needs[0] else None
        gradients: list[Tensor | None] = [None] * len(cast)
        cut = zip(_cut(spans, dy_all, inputs), projections, strict=True)
        for ((start, stop, i), dy, inputs_of_span), p in cut:
            (a, b), (trains_a, trains_b) = cast[2 * i : 2 * i + 2], needs[5 + 2 * i : 7 + 2 * i]
            if trains_b:
                _add(gradients, 2 * i + 1, (p @ dy).mul_(ctx.scales[i]).T)
            if not (trains_a or needs[0]):
                continue
            z = (b.T @ dy.T).mul_(ctx.scales[i])  # (R, n)
            if trains_a:
                _add(gradients, 2 * i, z @ inputs_of_span)
            if dx is not None:
                torch.mm(z.T, a, out=dx[start:stop])
        if dx is not None:
            dx = dx.view(ctx.shape).to(ctx.dtypes[0])
            dx = dx if mask is None else drop_(dx, mask)
        pairs = zip(gradients, ctx.dtypes[1:], strict=True)
        return dx, grad, None, None, None, *(d if d is None else d.to(t) for d, t in pairs)


def _cut(spans: Sequence[Span], *tensors: Tensor) -> list[tuple[Any, ...]]:
    """(span, its tokens of every tensor) for each span."""
    if len(spans) == 1:
        return [(spans[0], *tensors)]
    return [(span, *(t[span[0] : span[1]] for t in tensors)) for span in spans]


def _tokens(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x as (N, I), with zeros where `mask` drops it."""
    if mask is None:
        x = x.to(dtype)
    else:
        x = drop_(x.to(dtype, copy=True, memory_format=torch.contiguous_format), mask)
    return x.reshape(-1, x.shape[-1])


def _add(gradients: list[Tensor | None], i: int, gradient: Tensor) -> None:
    """Add to gradient `i`, which is None before the first span that has it. In place."""
    before = gradients[i]
    gradients[i] = gradient if before is None else before.add_(gradient)
