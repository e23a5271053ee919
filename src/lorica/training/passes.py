"""Which rows of a run share a forward pass: packed, padded, or one at a time. See base.batching."""

from collections.abc import Sequence

from lorica.base import packing
from lorica.base.batching import Batching, padding_of
from lorica.base.load import LoadedModel
from lorica.base.training_probe import draws_in_training
from lorica.core.attach import use
from lorica.data.load import Data
from lorica.training.config import TrainConfig


def packing_of(base: LoadedModel, lengths: Sequence[int]) -> Batching:
    """How rows of `lengths` tokens may be packed; `refused`: why they must be padded instead."""
    if base.labels is not None:
        return Batching("a classifier reads each row on its own")
    with use(base.model):  # an adapter may ask for conditions, which are not at hand here
        if reason := packing.why_not_packed(base.model):
            return Batching(reason)
        found = packing.packing_of(base.model)
    if found.longest is not None and (long := sum(n > found.longest for n in lengths)):
        return Batching(
            f"{long:,} of {len(lengths):,} rows are longer than {found.longest} tokens "
            f"({found.causes['longest']}), and packed they give something else"
        )
    return found


def batching_of(
    base: LoadedModel, data: Data, config: TrainConfig
) -> tuple[bool, Batching, list[str]]:
    """Whether rows are packed, which of them share a pass, and named lines about it."""
    lengths, micro = data.train.lengths.tolist(), config.micro_batch_size
    found, lines = packing_of(base, lengths), []
    if config.split is None and draws_in_training(base.model):
        lines.append(
            "the base itself draws at random in training (dropout or noise in its "
            "config): micro-batches of another size draw something else"
        )
    if packed := found.refused is None:
        return packed, found, lines + found.notices(lengths, micro)
    lines.append(f"batches are padded: {found.refused}")
    with use(base.model):
        found = padding_of(base.model)
    if found.refused is not None and micro > 1:
        lines.append(f"rows go through the model one at a time: {found.refused}")
    return packed, found, lines + found.notices(lengths, micro)
