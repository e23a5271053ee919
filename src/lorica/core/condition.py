"""What rows are conditioned on: set once, for every adapter that makes its update from it.

A condition is a text: a task ("summary"), a pair of languages ("en-fr"), an embedding written as
JSON ("[0.1, -2.3]"), or a description in words. What is set stays set until the next call,
because activation checkpointing runs the forward pass again during the backward pass.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, Method
from lorica.core.attach import use
from lorica.core.bank import adapted_layers
from lorica.core.modes import in_mode
from lorica.errors import ConfigError, DataError, listed

_GIVING = threading.RLock()


class Conditioned(Adapter):
    """An adapter whose update follows from a condition. It overrides `condition`."""

    known: Sequence[str] = ()
    """The conditions that it was made for; (): any."""

    def undescribed(self, conditions: Sequence[str]) -> list[str]:
        """The texts that it needs a vector of and has none: those it knows, and `conditions`."""
        return []

    def describe(self, vectors: Mapping[str, Tensor]) -> list[str]:
        """Take the vectors (width,) of texts. Returns: those that it was not trained on."""
        return []


def set_conditions(
    model: nn.Module, conditions: Sequence[str] | None, lengths: Sequence[int] | None = None
) -> None:
    """Tell the active adapters what the rows of the next forward passes are conditioned on.

    conditions: one for each row of the batch; a single one is for all rows; None: none.
    lengths: tokens of each row where rows lie end to end in one; None: each row is its own.

    Adapters of other methods take no notice; `unused` gives the line that says so.
    Raises: ConfigError if an adapter does not know a condition, or cannot read it.
    """
    whole = (conditions,) if isinstance(conditions, str) else conditions
    whole = None if whole is None else tuple(whole)
    for adapter in _acting(model):
        adapter.condition(whole, None if lengths is None else tuple(lengths))


@contextmanager
def given(
    model: nn.Module, conditions: Sequence[str] | None, lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside the block the conditions are set; none are afterwards. Not for training.

    Adapters keep what they are conditioned on: one thread at a time has such a block.
    """
    with _GIVING if conditioned(model) else nullcontext():
        set_conditions(model, conditions, lengths)
        try:
            yield
        finally:
            set_conditions(model, None)


def conditioned(model: nn.Module) -> bool:
    """An active adapter makes its update from a condition."""
    return any(isinstance(adapter, Conditioned) for adapter in _acting(model))


def unused(model: nn.Module, conditions: Sequence[str] | None) -> list[str]:
    """A named line if rows have conditions that no active adapter uses."""
    if not conditions or conditioned(model):
        return []
    return [f"the condition of the rows is not used: {listed(sorted(set(conditions)))}"]


def informed(method: Method, model: nn.Module, conditions: Sequence[str] | None) -> Method:
    """`method`, told what the training rows are conditioned on; before it is attached.

    One that reads texts is told the width of the base's hidden states as well.
    """
    method = method.knowing(conditions)
    if getattr(method, "condition", None) != "text":
        return method
    config: Any = model.config
    settings: dict[str, Any] = {"width": int(config.get_text_config().hidden_size)}
    return replace(method, **settings)


@torch.no_grad()
def describe(
    model: nn.Module, tokenizer: Any, conditions: Sequence[str] | None = None
) -> list[str]:
    """Give the adapters that read texts a vector of each: those they know, and `conditions`.

    The vector is the mean of the base's last hidden states over the text, without adapters.
    Those of known texts are saved with the adapter; others last as long as the model.

    Returns: a named line on texts that were not trained on. Raises: DataError for an empty one.
    """
    adapters = [a for a in _acting(model) if isinstance(a, Conditioned)]
    wanted = dict.fromkeys(t for a in adapters for t in a.undescribed(tuple(conditions or ())))
    if not wanted:
        return []
    with use(model), in_mode(model, training=False):
        vectors = {text: _vector(model, tokenizer, text) for text in wanted}
    new = dict.fromkeys(text for a in adapters for text in a.describe(vectors))
    return [f"not trained on, and taken by their words alone: {listed(new)}"] if new else []


def hold(model: nn.Module, tokenizer: Any, condition: str | None) -> list[str]:
    """Set one condition for all rows from now on; None leaves everything as it is.

    Returns: the named lines of `describe`. Raises: ConfigError if no active adapter takes a
        condition, or does not know this one.
    """
    if condition is None:
        return []
    if not conditioned(model):
        raise ConfigError("this model takes no condition.", fix="leave it out")
    lines = describe(model, tokenizer, [condition])
    set_conditions(model, [condition])
    return lines


def _vector(model: Any, tokenizer: Any, text: str) -> Tensor:
    ids = tokenizer(text)["input_ids"] if text.strip() else []
    if not ids:
        raise DataError("a condition is empty.", fix="give it a text")
    asked = torch.tensor([ids], device=next(model.parameters()).device)
    states = model(input_ids=asked, output_hidden_states=True, use_cache=False).hidden_states
    return states[-1][0].float().mean(0)


def swapped(conditions: Sequence[str]) -> list[str]:
    """Each row's condition in place of another: every distinct one gives way to the next."""
    kinds = sorted(set(conditions))
    after = dict(zip(kinds, [*kinds[1:], *kinds[:1]], strict=True))
    return [after[condition] for condition in conditions]


def _acting(model: nn.Module) -> Iterator[Adapter]:
    return (a for layer in adapted_layers(model) for a in layer.adapters.acting_adapters())
