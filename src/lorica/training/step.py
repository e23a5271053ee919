"""One optimizer step. The loss is the mean over the label tokens of the whole step.

Micro-batches and processes only divide the work: each contributes its sum of losses over the
one count, so that 1 x 8, 2 x 4 and 8 x 1 rows, in one process or in two, give one update.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base.last import ASKED, last_of
from lorica.base.tail import tail_of
from lorica.core.condition import conditioned, set_conditions
from lorica.data.batch import Batch, pack, pad
from lorica.data.tokenise import Example
from lorica.kernels.loss import label_loss
from lorica.training.watch import check_connected

MOST = 0.8
"""Share of the positions that may be read of the last block, so that choosing them still pays."""


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


class Objective(nn.Module):
    """A batch in, the sum of the losses over its label tokens (rows of a classifier) out.

    The output head sees the label tokens alone, wherever the model can be taken apart for it, and
    so does the last block, as far as it acts on each position alone.

    whole: the last block sees every position all the same.
    """

    def __init__(self, model: nn.Module, *, packed: bool, whole: bool = False):
        super().__init__()
        self.model, self.packed, self.tail = model, packed, tail_of(model)
        self.last = None
        if self.tail and not whole and not conditioned(model):  # conditions are told by position
            self.last = last_of(model, self.tail.decoder, by_row=packed)
        ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]

    def forward(self, batch: Batch) -> Tensor:
        set_conditions(self.model, batch.conditions, batch.lengths if self.packed else None)
        if batch.labels is not None:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            return F.cross_entropy(
                self.model(**inputs).logits.float(), batch.labels, reduction="sum"
            )
        options: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if self.packed:
            options |= {"position_ids": batch.position_ids, "row_lengths": batch.lengths}
            options |= {"row_shared": batch.shared} if batch.shared else {}
        else:
            options["attention_mask"] = batch.attention_mask
        if self.tail is None:
            logits = self.model(**options).logits.flatten(0, 1)[batch.predict]
            return F.cross_entropy(logits.float(), batch.targets, reduction="sum")
        options |= self._asked(batch)
        hidden = self.tail.decoder(**options).last_hidden_state.flatten(0, 1)[batch.predict]
        return label_loss(
            hidden, batch.targets, self.tail, self.tail.vocabulary, self.tail.learned()
        )

    def _asked(self, batch: Batch) -> dict[str, Tensor]:
        """What the last block is told; see base.last."""
        if self.last is None:
            return {}
        # Rows that share their beginning may have labels behind one and the same position.
        asked = batch.predict.unique() if batch.shared else batch.predict
        return {ASKED: asked} if 0 < len(asked) <= MOST * batch.input_ids.numel() else {}


class Stepper:
    """Forward and backward over the rows of a step, on whatever accelerate has set up.

    shared: tokens with which several rows of a micro-batch begin are computed once.
    whole: the last block sees every position; see Objective.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        *,
        micro_batch_size: int,
        packed: bool,
        shared: bool,
        pad_id: int,
        whole: bool = False,
    ):
        self.accelerator, self.micro, self.packed, self.shared, self.pad_id = (
            accelerator, micro_batch_size, packed, shared, pad_id,
        )  # fmt: skip
        self.objective = accelerator.prepare_model(Objective(model, packed=packed, whole=whole))

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
            with nullcontext() if last else acc.no_sync(self.objective):
                loss = self.objective(batch.to(acc.device))
                check_connected(loss)
                extra = penalty() if last else 0.0
                acc.backward(loss * (acc.num_processes / labels) + extra)  # processes are averaged
            summed += loss.detach()
        total = acc.reduce(summed, reduction="sum").item() / labels
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm, foreach=True)
        extra = extra.item() if isinstance(extra, Tensor) else extra
        return Outcome(total, extra, float(norm), int(tokens), [r.where for r in rows])

    def said(self, rows: Sequence[Example]) -> list[str]:
        """A named line on what the first micro-batch of `rows` leaves out."""
        batch = self._batch(list(rows[: self.micro]))
        if batch.shared is None:
            return []
        left = batch.tokens - batch.input_ids.numel()
        line = (f"what rows begin with alike is computed once: {left:,} of the {batch.tokens:,} "
                "tokens of the first rows are left out")  # fmt: skip
        return [line]

    def _batch(self, rows: list[Example]) -> Batch:
        return pack(rows, share=self.shared) if self.packed else pad(rows, self.pad_id)


def _weight(batch: Batch) -> int:
    """What the loss is a mean over: label tokens, or the rows of a classifier."""
    return len(batch.targets) if batch.labels is None else len(batch.lengths)
