"""Conditions of rows, for adapters whose update depends on them: set once for all adapters.

A condition is a text: a task ("summary"), a pair of languages ("en-fr"), an embedding written as
JSON ("[0.1, -2.3]"), or a description in words. Conditions stay set until the next call, because
activation checkpointing runs the forward pass again during the backward pass.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import adapted_layers
from lorica.errors import listed

_ONE_BLOCK = threading.RLock()


class Conditioned(Adapter):
    """An adapter whose update depends on a condition. It overrides `condition`."""

    known: Sequence[str] = ()
    """The conditions that it was made for; (): any."""

    def texts_to_encode(self, conditions: Sequence[str]) -> list[str]:
        """The texts, of those it knows and of `conditions`, that it has no vector of yet."""
        return []

    def store_texts(self, vectors: Mapping[str, Tensor]) -> list[str]:
        """Store the vectors (width,) of texts. Returns: the texts that it was not trained on."""
        return []


def set_conditions(
    model: nn.Module, conditions: Sequence[str] | None, lengths: Sequence[int] | None = None
) -> None:
    """Set the conditions of the rows of the next forward passes, for all active adapters.

    conditions: one for each row of the batch; a single one is for all rows; None: none.
    lengths: tokens of each row of a packed batch; None: the batch is not packed.

    Adapters of other methods ignore them; `unused_conditions` gives the notice that says so.
    Raises: ConfigError if an adapter does not know a condition, or cannot read it.
    """
    by_row = (conditions,) if isinstance(conditions, str) else conditions
    by_row = None if by_row is None else tuple(by_row)
    for adapter in active_adapters(model):
        adapter.condition(by_row, None if lengths is None else tuple(lengths))


@contextmanager
def with_conditions(
    model: nn.Module, conditions: Sequence[str] | None, lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside the block the conditions are set; afterwards none are. Not for training.

    Adapters store their conditions, so that one thread at a time can be in such a block.
    """
    with _ONE_BLOCK if is_conditioned(model) else nullcontext():
        set_conditions(model, conditions, lengths)
        try:
            yield
        finally:
            set_conditions(model, None)


def is_conditioned(model: nn.Module) -> bool:
    """Whether the update of an active adapter depends on a condition."""
    return bool(conditioned_adapters(model))


def conditioned_adapters(model: nn.Module) -> list[Conditioned]:
    """The active adapters whose update depends on a condition."""
    return [a for a in active_adapters(model) if isinstance(a, Conditioned)]


def unused_conditions(model: nn.Module, conditions: Sequence[str] | None) -> list[str]:
    """A notice if the rows have conditions that no active adapter uses."""
    if not conditions or is_conditioned(model):
        return []
    return [f"the condition of the rows is not used: {listed(sorted(set(conditions)))}"]


def swapped_conditions(conditions: Sequence[str]) -> list[str]:
    """The conditions with every distinct one replaced by the next in sorted order."""
    distinct = sorted(set(conditions))
    following = dict(zip(distinct, [*distinct[1:], *distinct[:1]], strict=True))
    return [following[condition] for condition in conditions]


def active_adapters(model: nn.Module) -> Iterator[Adapter]:
    return (a for layer in adapted_layers(model) for a in layer.adapters.acting_adapters())
