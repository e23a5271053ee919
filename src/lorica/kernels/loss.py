"""The loss of a language model at its label tokens, computed in chunks.

`reference` is the definition. `label_loss` computes the gradient of each chunk together with its
loss. So the logits of one chunk are in memory at a time, and none is kept for the backward pass:

    z = head(h)    loss = - sum_n log softmax(z_n)[target]    dz = softmax(z) - onehot(target)

The head is the model's own code, with what it does to the logits (a bias, a scale, a soft cap).
Where nothing in it is trained, its weight gets no gradient: two products a token instead of three.

    N label tokens   C features   V vocabulary
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1 << 24
"""Most logits of a chunk: 64 MiB in float32. Smaller chunks are multiplied more slowly."""
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
    trainable: Sequence[Tensor] = (),
    segments: Sequence[int] = (),
) -> Tensor:
    """The sum of the negative log-likelihoods, in nats: a float32 scalar (float64 for float64).

    hidden: (N, C). targets: (N,). vocabulary: V. trainable: the tensors with gradients that `head`
    reads. segments: label tokens of each of K segments, in order; then the result is (K,), a sum
    for each, and nothing in the head may be trainable. It can be differentiated once.
    """
    assert not (segments and trainable)
    count = len(targets)
    chunks = max(math.ceil(count / max(CHUNK // vocabulary, 1)), 1)
    size = max(math.ceil(count / chunks), 1)  # chunks of one size: a small last one costs more
    loss: Any = _LabelLoss.apply(hidden, targets, head, size, segments or [count], *trainable)
    return loss if segments else loss[0]


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        size: int,
        segments: Sequence[int],
        *trainable: Tensor,
    ) -> Tensor:
        losses = torch.zeros(len(targets), device=hidden.device, dtype=_wide(hidden))
        for_hidden, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        d_hidden = torch.zeros_like(hidden) if for_hidden else None
        sums: list[Tensor | None] = [None] * len(trainable)
        numbers = [i for i, need in enumerate(needs) if need]
        tensors = [trainable[i] for i in numbers]
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        for i, (h, target) in enumerate(chunks):
            h = h.detach().requires_grad_(for_hidden)
            with torch.set_grad_enabled(for_hidden or bool(tensors)):
                logits = head(h)
            losses[i * size : i * size + len(h)], dz = _loss_and_gradient(logits.detach(), target)
            if not logits.requires_grad:
                continue
            inputs = [h, *tensors] if for_hidden else tensors
            gradients = list(torch.autograd.grad(logits, inputs, dz, allow_unused=True))
            if d_hidden is not None:
                d_hidden[i * size : i * size + len(h)] = gradients.pop(0)  # type: ignore[assignment]
            for number, gradient in zip(numbers, gradients, strict=True):
                before = sums[number]
                if before is not None and gradient is not None:
                    gradient = before + gradient
                sums[number] = gradient
        ctx.save_for_backward(d_hidden, *sums)
        ctx.segments = segments
        return torch.stack([segment.sum() for segment in losses.split(list(segments))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, *sums = ctx.saved_tensors
        if d_hidden is not None:
            sizes = torch.tensor(ctx.segments, device=grad.device)
            d_hidden = d_hidden * grad.to(d_hidden.dtype).repeat_interleave(sizes).unsqueeze(1)
        sums = (s if s is None else s * grad[0].to(s.dtype) for s in sums)  # one segment then
        return d_hidden, None, None, None, None, *sums


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(losses (N,), the gradient of their sum with respect to the logits, in their dtype)."""
    gradient = F.log_softmax(logits.to(_wide(logits)), dim=-1)
    at = targets.unsqueeze(1)
    loss = -gradient.gather(1, at).squeeze(1)
    gradient.exp_()
    gradient.scatter_add_(1, at, gradient.new_full((1, 1), -1.0).expand(at.shape))
    return loss, gradient.to(logits.dtype)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
