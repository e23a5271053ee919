"""Choose which rows of a run share a forward pass: packed, padded, or one at a time.

What an architecture can do is tried in base.batching.
"""

import numpy as np

from lorica.base import packing
from lorica.base.batching import Batching, padding_of
from lorica.base.load import LoadedModel
from lorica.base.training_probe import is_random_in_training
from lorica.core.attach import use
from lorica.data.load import Data
from lorica.training.config import TrainConfig
from lorica.training.placement import Placement


def choose_batching(
    base: LoadedModel, config: TrainConfig, data: Data, placement: Placement
) -> tuple[bool, Batching, list[str]]:
    """(rows are packed, which of them share a pass, notices)."""
    lengths, micro = data.train.lengths, config.micro_batch_size
    batching, notices = _packing(base, lengths), []
    if placement.has_blocks and is_random_in_training(base.model):
        notices.append(
            "the base itself draws at random in training (dropout or noise in its config): "
            "micro-batches of another size give other random numbers"
        )
    if batching.refused is None:
        return True, batching, notices + batching.notices(lengths, micro)
    notices.append(f"batches are padded: {batching.refused}")
    with use(base.model):
        padding = padding_of(base.model)
    if padding.refused is not None and micro > 1:
        notices.append(f"rows go through the model one at a time: {padding.refused}")
    return False, padding, notices + padding.notices(lengths, micro)


def _packing(base: LoadedModel, lengths: np.ndarray) -> Batching:
    """How rows of `lengths` tokens may be packed; `refused`: why they must be padded instead."""
    if base.labels is not None:
        return Batching("a classifier reads each row on its own")
    with use(base.model):  # without adapters: those with conditions would ask for them
        if reason := packing.why_not_packed(base.model):
            return Batching(reason)
        batching = packing.packing_of(base.model)
    limit = batching.longest
    if limit is not None and (long := int((lengths > limit).sum())):
        return Batching(
            f"{long:,} of {len(lengths):,} rows are longer than {limit} tokens "
            f"({batching.causes['longest']}), and packed they give other results"
        )
    return batching
