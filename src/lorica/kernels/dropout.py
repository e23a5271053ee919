"""Dropout that draws and keeps the positions of the dropped elements, instead of a full mask.

PyTorch's dropout draws a random number for every input, which on a CPU costs more than the products
that follow. Here the gaps between dropped elements are drawn, which are geometric: p n random
numbers instead of n, and p n writes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`, with fewer random numbers on the CPU."""
    if p == 0 or not training or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    kept: Any = _Dropout.apply(x, p)
    return kept


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:  # type: ignore[override]
        mask = dropped(x.shape, p, x.device)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return drop_(x.contiguous() * ctx.scale, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return drop_(grad.contiguous() * ctx.scale, mask), None


def dropped(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """Draw which elements are dropped, each with probability p.

    Returns: on the CPU their flat positions in ascending order, 4 bytes each; elsewhere a bool
        mask of this shape.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) < p
    n, chunks, last = shape.numel(), [], -1
    count = int(n * p + 6 * math.sqrt(n * p * (1 - p))) + 8  # too few once in 10^9 times
    while last < n:
        # float32, whatever the default dtype is: bfloat16 has 256 uniform numbers
        uniform = torch.rand(count, dtype=torch.float32)
        gaps = uniform.neg_().log1p_().mul_(1 / math.log1p(-p)).long().add_(1)
        chunks.append(gaps.cumsum(0).add_(last))
        last = int(chunks[-1][-1])
    positions = torch.cat(chunks)
    positions = positions[: int(torch.searchsorted(positions, n))]
    return positions.to(torch.int32 if n < 2**31 else torch.int64, copy=True)


def drop_(x: Tensor, mask: Tensor) -> Tensor:
    """Set the elements of `mask` to 0. In place. x: contiguous. mask: as `dropped` returns it."""
    if mask.dtype == torch.bool:
        return x.masked_fill_(mask, 0)
    x.view(-1).index_fill_(0, mask.long(), 0)
    return x
