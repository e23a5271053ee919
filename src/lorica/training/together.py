"""A step of one run, or of several on one base: one forward and backward pass for all of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from lorica.base.packing import packed
from lorica.training.step import Outcome, Stepper

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lorica.training.loop import Trainer


def stepper_for(trainers: "Sequence[Trainer]") -> Stepper:
    """What takes the steps of these runs. Layers that are elsewhere see every token."""
    first = trainers[0]
    split = first.config.split is not None
    return Stepper(
        first.accelerator,
        first.base.model,
        packed=first.packed,
        batching=first.batching,
        shared=all(trainer.shares for trainer in trainers),
        pad_id=first.base.tokenizer.pad_token_id or 0,
        halves=not split,
        whole=split,
    )


def step_of(trainers: "Sequence[Trainer]", stepper: Stepper) -> list[Outcome]:
    """The gradients of every run's next step. What follows from them is each run's own."""
    first = trainers[0]
    first.base.model.train()
    parts = [trainer.part() for trainer in trainers]
    before = [stepper.micro(part) for part in parts]
    with packed(first.base.model) if first.packed else nullcontext():
        done = stepper(parts)
    for trainer, part, micro in zip(trainers, parts, before, strict=True):
        if (now := stepper.micro(part)) < micro:
            trainer.say(
                f"the memory was full at step {trainer.progress.step + 1}: {now} rows at a "
                f"time go through the model, not {micro}"
            )
    return done


def agreed(accelerator: "Accelerator", mine: float) -> float:
    """The largest value of any process, so that all decide alike."""
    if accelerator.num_processes == 1:
        return mine
    own = torch.tensor([mine], dtype=torch.float64, device=accelerator.device)
    return float(accelerator.gather(own).max())  # type: ignore[union-attr]
