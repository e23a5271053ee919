"""The loss of a language model at its label tokens, a piece of them at a time.

`reference` is the definition. `label_loss` makes each piece's gradient together with its loss,
so that no more logits than one piece's are ever there, and none is kept for the backward pass:

    z = head(h)    loss = - sum_n log softmax(z_n)[target]    dz = softmax(z) - onehot(target)

What the head does to the logits (a bias, a scale, a soft cap) is the head's own code. Where
nothing in it is trained, its weight has no gradient: two products a token in place of three.

    N label tokens   C features   V vocabulary
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 1 << 24
"""Logits of a piece, at most: 64 MiB in float32. Fewer rows at a time are multiplied slower."""
Head = Callable[[Tensor], Tensor]
"""(N, C) to (N, V)."""


def reference(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """`label_loss`, written out."""
    logits = head(hidden)
    return F.cross_entropy(logits.to(_wide(logits)), targets, reduction="sum")


def label_loss(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    vocabulary: int,
    learned: Sequence[Tensor] = (),
    parts: Sequence[int] = (),
) -> Tensor:
    """The sum of the negative log-likelihoods, in nats: a float32 scalar (float64 for float64).

    hidden: (N, C). targets: (N,). vocabulary: V. learned: the tensors with gradients that `head`
    reads. parts: how many of the N belong to each of K parts, one after another; then there is a
    sum for each, (K,), and nothing in the head may be learned. The gradient has none of its own.
    """
    assert not (parts and learned)
    count = len(targets)
    pieces = max(math.ceil(count / max(PIECE // vocabulary, 1)), 1)
    size = max(math.ceil(count / pieces), 1)  # alike: a small rest costs more than its share
    loss: Any = _LabelLoss.apply(hidden, targets, head, size, parts or [count], *learned)
    return loss if parts else loss[0]


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        size: int,
        parts: Sequence[int],
        *learned: Tensor,
    ) -> Tensor:
        losses = torch.zeros(len(targets), device=hidden.device, dtype=_wide(hidden))
        for_hidden, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        slope = torch.zeros_like(hidden) if for_hidden else None
        sums: list[Tensor | None] = [None] * len(learned)
        asked = [tensor for tensor, want in zip(learned, wanted, strict=True) if want]
        places = [i for i, want in enumerate(wanted) if want]
        pieces = zip(hidden.split(size), targets.split(size), strict=True)
        for i, (h, target) in enumerate(pieces):
            h = h.detach().requires_grad_(for_hidden)
            with torch.set_grad_enabled(for_hidden or bool(asked)):
                logits = head(h)
            losses[i * size : i * size + len(h)], dz = _loss_and_slope(logits.detach(), target)
            if not logits.requires_grad:
                continue
            inputs = [h, *asked] if for_hidden else asked
            found = list(torch.autograd.grad(logits, inputs, dz, allow_unused=True))
            if slope is not None:
                slope[i * size : i * size + len(h)] = found.pop(0)  # type: ignore[assignment]
            for place, part in zip(places, found, strict=True):
                before = sums[place]
                sums[place] = part if before is None or part is None else before + part
        ctx.save_for_backward(slope, *sums)
        ctx.parts = parts
        return torch.stack([part.sum() for part in losses.split(list(parts))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slope, *sums = ctx.saved_tensors
        if slope is not None:
            sizes = torch.tensor(ctx.parts, device=grad.device)
            slope = slope * grad.to(slope.dtype).repeat_interleave(sizes).unsqueeze(1)
        sums = (s if s is None else s * grad[0].to(s.dtype) for s in sums)  # learned: one part
        return slope, None, None, None, None, *sums


def _loss_and_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(losses (N,), the gradient of their sum by the logits, in their dtype)."""
    slope = F.log_softmax(logits.to(_wide(logits)), dim=-1)
    at = targets.unsqueeze(1)
    loss = -slope.gather(1, at).squeeze(1)
    slope.exp_()
    slope.scatter_add_(1, at, slope.new_full((1, 1), -1.0).expand(at.shape))
    return loss, slope.to(logits.dtype)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
