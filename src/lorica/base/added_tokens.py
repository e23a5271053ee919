"""Tokens that a run adds to its base's vocabulary, and the rows that they need.

A new row starts as a copy of the row of the first piece that its text had before: the same bits
in every dtype, so that the base is the same one when the adapter is opened.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lorica.errors import ConfigError, listed


def with_tokens(tokenizer: Any, tokens: Sequence[str]) -> Any:
    """`tokenizer` with `tokens`, each of which becomes one token wherever it stands. In place.

    Raises: ConfigError for one that is there already.
    """
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise ConfigError(
            f"data.add_tokens names tokens that the base has already: {listed(known)}.",
            fix="leave them out; --trainable_token_indices trains their rows",
        )
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def grow(model: Any, before: Any, after: Any, rows: int) -> None:
    """Give embedding and head `rows` rows. In place.

    before, after: the tokenizers without and with the new tokens.
    """
    table = model.get_input_embeddings()
    have = len(table.weight)
    pieces = [
        before(text, add_special_tokens=False)["input_ids"] if text else []
        for text in after.convert_ids_to_tokens(list(range(have, rows)))
    ]
    first = torch.tensor([ids[0] if ids else 0 for ids in pieces])
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[have:] = layer.weight[first.to(layer.weight.device)]
    model.requires_grad_(False)


def trained_with(model: Any, tokenizer: Any, tokens: Sequence[str]) -> tuple[list[str], list[int]]:
    """(layers to train whole, ids of rows to train) so that `tokens` are learned.

    Where the head is tied to the embedding their rows do; else both layers are trained whole.
    """
    if not tokens:
        return [], []
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is table.weight:
        return [], tokenizer.convert_tokens_to_ids(list(tokens))
    return [name for name, module in model.named_modules() if module in (table, head)], []
