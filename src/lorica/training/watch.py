"""Watches: stop a run that goes wrong before its numbers are saved, or add a notice."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lorica.core.state import not_finite
from lorica.errors import TrainingError, listed
from lorica.training.base_model import vocabulary_size
from lorica.training.checkpoint import Progress
from lorica.training.state import RunState
from lorica.training.step import Outcome

SMOOTHING = 0.9  # of the training loss: about the last ten steps
MIN_FALL = 0.02  # share of the first training loss; a smaller fall is a standstill
PERSISTENT = 0.2  # agreement of gradients (optim.persistence) from which a rate is too low


def check_step(state: RunState, outcome: Outcome) -> None:
    """Before the update: the gradients of a step must exist and be finite. Adds notices."""
    tensors = state.adapter.tensors
    if state.progress.step == 0:
        check_gradients(tensors)
        state.run.notice(*notices_of_first_loss(outcome.loss, vocabulary_size(state.base)))
    check_finite(outcome.loss, outcome.norm, outcome.where, tensors)


def notices_of_first_loss(loss: float, vocabulary: int | None) -> list[str]:
    """A notice if the base predicts worse than a uniform guess.

    loss: nats per label token at the first step. vocabulary: tokens; None: a classifier.
    """
    if vocabulary is None or loss <= math.log(vocabulary):
        return []
    guess = f"{math.log(vocabulary):.2f}, that of a uniform guess among {vocabulary:,} tokens"
    return [
        f"the first loss, {loss:.2f}, is above {guess}: do tokenizer, base and rows fit together?"
    ]


def check_gradients(tensors: Mapping[str, nn.Parameter]) -> None:
    """After the first backward pass every trained tensor must have a gradient.

    Without a gradient its layer is bypassed, or never called.
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
    """Stop before the optimizer uses a loss or a gradient that is not finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    bad = not_finite({name: t.grad for name, t in tensors.items() if t.grad is not None})
    raise TrainingError(
        f"the loss is {loss} and the gradient norm {norm}; the adapter was not updated.",
        rows=listed(where, 16),
        gradients=listed(bad),
        fix="lower learning_rate, check these rows, or use dtype float32",
    )


def check_weights(state: RunState) -> None:
    """After an update, before it is evaluated or saved: every trained tensor must be finite."""
    tensors, step = state.adapter.tensors, state.progress.step
    if broken := not_finite(tensors):
        raise TrainingError(
            f"{len(broken)} of {len(tensors)} trained tensors are not finite after step {step}; "
            "nothing of them is saved.",
            tensors=listed(broken),
            learning_rate=f"{state.learning_rate_at(step - 1):g}",
            fix="lower learning_rate; checkpoints of earlier steps are unchanged",
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


def notices_of_rise(progress: Progress, best: object, init_from: str | None) -> list[str]:
    """A notice if the validation loss is higher than before training.

    best: an earlier adapter that is saved instead. init_from: the adapter that the run began with.
    """
    before, after = progress.first_eval, progress.last_eval
    if best is not None or before is None or after is None or after <= before:
        return []
    rose = f"the validation loss rose from {before:.4f} to {after:.4f}"
    return [f"{rose}: the adapter is worse than {init_from or 'the base'}; lower learning_rate"]


def notices_of_standstill(
    losses: Sequence[float], persistence: float | None, rate: float, default: float
) -> list[str]:
    """A notice if the training loss hardly moved though there was more to learn.

    losses: of every step of the run. persistence: see optim. rate, default: the learning rate of
        the run, and the method's default. The means of the first and the last tenth of the steps
        are compared: a fall of less than MIN_FALL of the first, or within two standard errors, is
        a standstill. If the last gradients are noise, there is nothing more to learn: no notice.
    """
    steps = len(losses)
    tenth = max(steps // 10, 5)
    if steps < 4 * tenth:
        return []
    first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    noise = statistics.stdev(b - a for a, b in pairwise(losses)) / math.sqrt(tenth)
    fall = first - last
    done = persistence < PERSISTENT if persistence is not None else rate > default / 3
    if done or not -2 * noise < fall < max(MIN_FALL * first, 2 * noise):
        return []
    moved = f"the training loss hardly moved: {first:.3f} to {last:.3f} in {steps} steps"
    own = f"the method's own is {default:g} here"
    return [f"{moved}; raise learning_rate, now {rate:g} ({own}), or max_steps"]


@torch.no_grad()
def check_moved(
    start: Mapping[str, Tensor],
    tensors: Mapping[str, nn.Parameter],
    live: Mapping[str, Tensor],
    any_process: Callable[[Sequence[bool]], list[bool]] = list,
    *,
    steps: int,
) -> list[str]:
    """Notices on trained tensors that are equal to what they were at the start.

    live: of some tensors, which elements are in use; tensors that are not in use may stay as they
    are. any_process: whether a part moved in any process, for each tensor. steps: of the run. After
    one there are no notices: B of LoRA begins at zero, so that A has no gradient in the first step.
    Raises: TrainingError if no tensor moved at all.
    """
    used = [name for name in tensors if name not in live or live[name].any()]
    moved = any_process([not torch.equal(start[name], tensors[name].cpu()) for name in used])
    unmoved = [name for name, does in zip(used, moved, strict=True) if not does]
    if unmoved and len(unmoved) == len(used):
        raise TrainingError(
            "no trained tensor changed: the run has learned nothing.",
            fix="raise learning_rate or max_steps",
        )
    if not unmoved or steps == 1:
        return []
    return [f"{len(unmoved)} of {len(tensors)} trained tensors never changed: {listed(unmoved)}"]
