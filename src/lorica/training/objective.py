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

    all_positions: the last block computes every position, not only those with a label.
    """

    def __init__(self, model: nn.Module, *, packed: bool, all_positions: bool = False):
        super().__init__()
        self.model, self.packed, self.tail = model, packed, tail_of(model)
        self.last = None
        if (
            self.tail and not all_positions and not is_conditioned(model)
        ):  # conditions go by position
            self.last = last_block_of(model, self.tail.decoder, by_row=packed)

    def hooked(self) -> AbstractContextManager[None]:
        """Inside the block the last decoder block computes label positions only."""
        return nullcontext() if self.last is None else self.last.hooked(bank_of(self.model))

    def forward(self, batch: Batch, segment_labels: Sequence[int] = ()) -> Tensor:
        """The summed loss, a scalar; of each segment of the route, (K,), if they are given.

        segment_labels: the number of label tokens in each segment.
        """
        set_conditions(self.model, batch.conditions, batch.lengths if self.packed else None)
        if batch.labels is not None:
            logits = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits
            return F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        inputs = self._inputs(batch)
        if self.tail is None:
            logits = self.model(**inputs).logits.flatten(0, 1)[batch.label_positions]
            losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
            sums = [own.sum() for own in losses.split(list(segment_labels) or [len(losses)])]
            return torch.stack(sums) if segment_labels else sums[0]
        tail, inputs = self.tail, inputs | self._label_positions(batch)
        hidden = tail.decoder(**inputs).last_hidden_state.flatten(0, 1)[batch.label_positions]
        return label_loss(
            hidden, batch.targets, tail, tail.vocabulary, tail.trainable(), segment_labels
        )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Keywords of the model's call."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if not self.packed:
            return {**inputs, "attention_mask": batch.attention_mask}
        inputs |= {"position_ids": batch.position_ids, "row_lengths": batch.lengths}
        return inputs | ({"row_shared": batch.shared_prefixes} if batch.shared_prefixes else {})

    def _label_positions(self, batch: Batch) -> dict[str, LabelPositions]:
        """Which positions the last block computes; for each segment as if it were alone."""
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
            index = torch.cat(
                [labels if less else everything for less, labels, everything in chosen]
            )
            at_labels = route.at(index)
        return {LABEL_POSITIONS: LabelPositions(index, at_labels)}


def _sizes(route: Route, tokens: int) -> list[int]:
    return list(route.sizes) if isinstance(route, BySegment) else [tokens]
