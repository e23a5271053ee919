"""Watches: a run that is wrong stops and says so, before the wrong number is kept."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorica.errors import TrainingError, listed
from lorica.training.checkpoint import Progress

SMOOTHING = 0.9  # of the training loss: about the last ten steps


def check_connected(loss: Tensor) -> None:
    """Before the first backward pass: the loss must depend on something that is trained."""
    if not loss.requires_grad:
        raise TrainingError(
            "the loss does not depend on the adapter: no gradient can reach it.",
            fix="target layers that the model calls",
        )


def check_gradients(tensors: Mapping[str, nn.Parameter]) -> None:
    """After the first backward pass every trained tensor must have a gradient.

    One that has none is not in the computation: its layer is bypassed, or never called.
    """
    without = [n for n, tensor in tensors.items() if tensor.requires_grad and tensor.grad is None]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(tensors)} trained tensors got no gradient on the first step.",
            tensors=listed(without),
            fix="leave these layers out of target_modules: the model does not call them",
        )


def check_finite(
    loss: float, norm: float, where: Sequence[str], tensors: Mapping[str, nn.Parameter]
) -> None:
    """Stop before the optimizer sees a loss or a gradient that is no number."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    bad = [n for n, t in tensors.items() if t.grad is not None and not t.grad.isfinite().all()]
    raise TrainingError(
        f"the loss is {loss} and the gradient norm {norm}; the step was not taken.",
        rows=listed(where, 16),
        gradients=listed(bad),
        fix="look at these rows, lower learning_rate, or use dtype float32",
    )


def check_rise(progress: Progress, loss: float, limit: float | None) -> None:
    """Update the smoothed loss of `progress`, and stop when it has risen too far. In place."""
    before = progress.smooth
    progress.smooth = loss if before is None else SMOOTHING * before + (1 - SMOOTHING) * loss
    lowest = progress.smooth if progress.lowest is None else min(progress.lowest, progress.smooth)
    progress.lowest = lowest
    if limit is not None and progress.smooth - lowest > limit:
        raise TrainingError(
            f"the loss rose to {progress.smooth:.4f}, more than loss_limit above its lowest.",
            lowest=f"{lowest:.4f}",
            loss_limit=limit,
            step=progress.step,
            fix="lower learning_rate; the newest checkpoint is from before the rise or near it",
        )


@torch.no_grad()
def check_moved(
    start: Mapping[str, Tensor], tensors: Mapping[str, nn.Parameter], live: Mapping[str, Tensor]
) -> list[str]:
    """Named lines for trained tensors that are what they were at the start.

    live: of some tensors, which of their numbers are in use; what is out of use may keep still.
    Raises: TrainingError if none moved at all.
    """
    used = [name for name in tensors if name not in live or live[name].any()]
    still = [name for name in used if torch.equal(start[name], tensors[name].cpu())]
    if still and len(still) == len(used):
        raise TrainingError(
            "no trained tensor moved: the run has learned nothing.",
            fix="raise learning_rate or max_steps",
        )
    return (
        [f"{len(still)} of {len(tensors)} trained tensors never moved: {listed(still)}"]
        if still
        else []
    )
