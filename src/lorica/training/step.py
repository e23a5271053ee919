"""One optimizer step. The loss is the mean over the label tokens of the whole step.

Micro-batches and processes only divide the work: each contributes its sum of losses over the
one count, so that 1 x 8, 2 x 4 and 8 x 1 rows, in one process or in two, give one update.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.condition import set_conditions
from lorica.data.batch import Batch, pack, pad
from lorica.data.tokenise import Example
from lorica.training.watch import check_connected


@dataclass(frozen=True)
class Outcome:
    """What one step did.

    loss: nats per label token (per row for a classifier). penalty: what the method added to it.
    """

    loss: float
    penalty: float
    norm: float
    tokens: int
    where: list[str]


class Stepper:
    """Forward and backward over the rows of a step, on whatever accelerate has set up."""

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        *,
        micro_batch_size: int,
        packed: bool,
        pad_id: int,
    ):
        self.accelerator, self.micro, self.packed, self.pad_id = (
            accelerator, micro_batch_size, packed, pad_id,
        )  # fmt: skip
        bare = accelerator.unwrap_model(model)
        self.model, self.bare = model, bare
        self.keeps = "logits_to_keep" in signature(bare.forward).parameters

    def __call__(
        self,
        rows: Sequence[Example],
        tensors: Mapping[str, nn.Parameter],
        max_norm: float,
        penalty: Callable[[], Tensor | float],
    ) -> Outcome:
        """Gradients of the mean loss over `rows` plus `penalty`, clipped. In place.

        The penalty enters once, whatever the number of micro-batches and processes.
        """
        acc = self.accelerator
        mine = list(rows)[acc.process_index :: acc.num_processes]
        batches = [self._batch(mine[i : i + self.micro]) for i in range(0, len(mine), self.micro)]
        counts = torch.tensor([[_weight(b), b.tokens] for b in batches]).sum(0).to(acc.device)
        labels, tokens = acc.reduce(counts, reduction="sum").tolist()
        summed = torch.zeros((), device=acc.device)
        extra: Tensor | float = 0.0
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if last else acc.no_sync(self.model):
                loss = self._loss(batch.to(acc.device))
                check_connected(loss)
                extra = penalty() if last else 0.0
                acc.backward(loss * (acc.num_processes / labels) + extra)  # processes are averaged
            summed += loss.detach()
        total = acc.reduce(summed, reduction="sum").item() / labels
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm, foreach=True)
        extra = extra.item() if isinstance(extra, Tensor) else extra
        return Outcome(total, extra, float(norm), int(tokens), [r.where for r in rows])

    def _batch(self, rows: list[Example]) -> Batch:
        return pack(rows) if self.packed else pad(rows, self.pad_id)

    def _loss(self, batch: Batch) -> Tensor:
        """The sum of losses over the label tokens (rows) of a batch."""
        set_conditions(self.bare, batch.conditions, batch.lengths if self.packed else None)
        if batch.labels is not None:
            logits = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits
            return F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        options: dict[str, Any] = {"use_cache": False}
        if self.packed:
            options |= {"position_ids": batch.position_ids, "row_lengths": batch.lengths}
            if self.keeps:
                options["logits_to_keep"] = batch.predict
        else:
            options["attention_mask"] = batch.attention_mask
        logits = self.model(input_ids=batch.input_ids, **options).logits.flatten(0, 1)
        if not (self.packed and self.keeps):
            logits = logits[batch.predict]
        return F.cross_entropy(logits.float(), batch.targets, reduction="sum")


def _weight(batch: Batch) -> int:
    """What the loss is a mean over: label tokens, or the rows of a classifier."""
    return len(batch.targets) if batch.labels is None else len(batch.lengths)
