"""The training objective: a batch in, the sum of the losses at its label positions out.

The output head, and the last block of the decoder, compute only the label positions, wherever the
architecture allows it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base.last_block import LABEL_POSITIONS, LabelPositions, last_block_of
from lorica.base.tail import tail_of
from lorica.core.bank import bank_of
from lorica.core.condition import is_conditioned, set_conditions
from lorica.core.route import BySegment, Route
from lorica.data.batch import Batch
from lorica.kernels.loss import label_loss

MAX_LABEL_SHARE = 0.8
"""Share of the positions up to which gathering the label positions pays off in the last block."""


class Objective(nn.Module):
    """The summed loss over the label tokens of a batch (over its rows for a classifier).

    whole: the last block computes every position all the same.
    """

    def __init__(self, model: nn.Module, *, packed: bool, whole: bool = False):
        super().__init__()
        self.model, self.packed, self.tail = model, packed, tail_of(model)
        self.last = None
        if self.tail and not whole and not is_conditioned(model):  # conditions go by position
            self.last = last_block_of(model, self.tail.decoder, by_row=packed)
        ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]

    def hooked(self) -> AbstractContextManager[None]:
        """Inside the block the last block sees label positions only. For forward and backward."""
        return nullcontext() if self.last is None else self.last.hooked(bank_of(self.model))

    def forward(self, batch: Batch, parts: Sequence[int] = ()) -> Tensor:
        """parts: the label tokens of each segment of the route.

        Returns: a scalar; with parts a sum for each, (K,).
        """
        set_conditions(self.model, batch.conditions, batch.lengths if self.packed else None)
        if batch.labels is not None:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            return F.cross_entropy(
                self.model(**inputs).logits.float(), batch.labels, reduction="sum"
            )
        options: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if self.packed:
            options |= {"position_ids": batch.position_ids, "row_lengths": batch.lengths}
            options |= {"row_shared": batch.shared_prefixes} if batch.shared_prefixes else {}
        else:
            options["attention_mask"] = batch.attention_mask
        if self.tail is None:
            logits = self.model(**options).logits.flatten(0, 1)[batch.label_positions]
            losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
            sums = [part.sum() for part in losses.split(list(parts) or [len(losses)])]
            return torch.stack(sums) if parts else sums[0]
        options |= self._label_positions(batch)
        hidden = self.tail.decoder(**options).last_hidden_state.flatten(0, 1)[batch.label_positions]
        tail = self.tail
        return label_loss(hidden, batch.targets, tail, tail.vocabulary, tail.learned(), parts)

    def _label_positions(self, batch: Batch) -> dict[str, LabelPositions]:
        """What the last block receives. A segment is given the positions that it is given alone."""
        if self.last is None or not self.last.is_hooked:
            return {}
        # Rows that share a prefix may have labels behind one and the same position.
        index = batch.label_positions.unique() if batch.shared_prefixes else batch.label_positions
        route, size = bank_of(self.model).route, batch.input_ids.numel()
        at_labels = route.at(index)
        sizes, counts = _sizes(route, size), _sizes(at_labels, len(index))
        few = [0 < n <= MAX_LABEL_SHARE * size for n, size in zip(counts, sizes, strict=True)]
        if not any(few):
            return {}
        if not all(few):
            every = torch.arange(size, device=index.device).split(sizes)
            chosen = zip(few, index.split(counts), every, strict=True)
            index = torch.cat([labels if less else whole for less, labels, whole in chosen])
            at_labels = route.at(index)
        return {LABEL_POSITIONS: LabelPositions(index, at_labels)}


def _sizes(route: Route, tokens: int) -> list[int]:
    return list(route.sizes) if isinstance(route, BySegment) else [tokens]
