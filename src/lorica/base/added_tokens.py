"""Add tokens to the vocabulary of a base, and rows to its embedding.

A new row starts as a copy of the row of the first token that its text had before: the same bits in
every dtype, so that the base has the same fingerprint when the adapter is opened.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lorica.errors import ConfigError, listed


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> Any:
    """Add each of `tokens` to the vocabulary. In place. Returns: `tokenizer`.

    Raises: ConfigError if the vocabulary has one of them already.
    """
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise ConfigError(
            f"data.add_tokens names tokens that the base has already: {listed(known)}.",
            fix="leave them out; --trainable_token_indices trains their rows",
        )
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def resize_embedding(model: Any, before: Any, after: Any, rows: int) -> None:
    """Resize embedding and head to `rows` rows. In place.

    before, after: the tokenizers without and with the new tokens.
    """
    table = model.get_input_embeddings()
    old_rows = len(table.weight)
    old_ids = [
        before(text, add_special_tokens=False)["input_ids"] if text else []
        for text in after.convert_ids_to_tokens(list(range(old_rows, rows)))
    ]
    first = torch.tensor([ids[0] if ids else 0 for ids in old_ids])
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[old_rows:] = layer.weight[first.to(layer.weight.device)]
    model.requires_grad_(False)


def trained_for_tokens(
    model: Any, tokenizer: Any, tokens: Sequence[str]
) -> tuple[list[str], list[int]]:
    """(layers to train whole, ids of rows to train) so that `tokens` are learned.

    If the head is tied to the embedding, only their rows; otherwise both layers, whole.
    """
    if not tokens:
        return [], []
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is table.weight:
        return [], tokenizer.convert_tokens_to_ids(list(tokens))
    return [name for name, module in model.named_modules() if module in (table, head)], []
