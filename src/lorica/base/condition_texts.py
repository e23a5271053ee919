"""Conditions that are texts: the base encodes them for the adapters that depend on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.attach import use
from lorica.core.condition import conditioned_adapters, is_conditioned, set_conditions
from lorica.core.modes import in_mode
from lorica.errors import ConfigError, DataError, listed


@torch.no_grad()
def encode_conditions(
    model: nn.Module, tokenizer: Any, conditions: Sequence[str] | None = None
) -> list[str]:
    """Give the active adapters a vector for each text that they need and do not have yet.

    Those texts are the ones that an adapter knows, and `conditions`. The vector is the mean of the
    base's last hidden states over the text, without adapters. Vectors of known texts are saved with
    the adapter; others last as long as the model.

    Returns: a notice on texts that were not trained on. Raises: DataError for an empty text.
    """
    adapters = conditioned_adapters(model)
    texts = dict.fromkeys(t for a in adapters for t in a.texts_to_encode(tuple(conditions or ())))
    if not texts:
        return []
    with use(model), in_mode(model, training=False):
        vectors = {text: _mean_hidden_state(model, tokenizer, text) for text in texts}
    new = dict.fromkeys(text for adapter in adapters for text in adapter.store_texts(vectors))
    return [f"conditions that were not trained on: {listed(new)}"] if new else []


def fix_condition(model: nn.Module, tokenizer: Any, condition: str | None) -> list[str]:
    """Set one condition for all rows from now on; None: change nothing.

    Returns: the notices of `encode_conditions`. Raises: ConfigError if no active adapter takes a
        condition, or an adapter does not know this one.
    """
    if condition is None:
        return []
    if not is_conditioned(model):
        raise ConfigError("this model takes no condition.", fix="leave it out")
    notices = encode_conditions(model, tokenizer, [condition])
    set_conditions(model, [condition])
    return notices


def _mean_hidden_state(model: Any, tokenizer: Any, text: str) -> Tensor:
    """The mean of the base's last hidden states over `text`: (C,) float32."""
    ids = tokenizer(text)["input_ids"] if text.strip() else []
    if not ids:
        raise DataError("a condition is empty.", fix="give it a text")
    input_ids = torch.tensor([ids], device=next(model.parameters()).device)
    output = model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0].float().mean(0)
