"""How many tokens a base can process, whatever its config says.

RoBERTa counts positions from behind the padding token's id, so that of 514 rows of its table 512
are for tokens; XLNet says -1 for no limit; a tokenizer may have tokens without an embedding.
"""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from lorica.base.model_view import config_of, config_view, embedding_rows, offset_of
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.errors import DataError, listed

POSITION_TABLE = re.compile(r"(^|[._])(pos|wpe|position|positions)([._]|$)")


def positions_of(config: Any, model: nn.Module) -> int | None:
    """The longest row in tokens that `model`, which may be on the meta device, has positions for.

    None: no limit.
    """
    most = config_view(config).max_length
    tables = [
        module.num_embeddings - _first_row(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and POSITION_TABLE.search(name)
    ]
    return most if most is None else min([most, *(n for n in tables if n > most // 2)])


def _first_row(table: nn.Embedding) -> int:
    """The row of a position table that belongs to the first token."""
    if (offset := offset_of(table)) is not None:
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1


def fit_padding(model: nn.Module, tokenizer: Any) -> list[str]:
    """Give tokenizer and config a padding token that has an embedding. In place.

    Padding is masked, so that any token will do. Returns: notices, also on tokens of the
    tokenizer that have no embedding.
    """
    rows, config = embedding_rows(model), config_of(model)
    if rows is None:
        return []
    notices = []
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= rows:
        end = tokenizer.eos_token_id
        token = end if end is not None and end < rows else 0
        notices.append(
            f"the padding token {tokenizer.pad_token!r} is number {pad}, and the base has "
            f"embeddings of {rows} tokens: rows are padded with token {token}"
        )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    for own in {id(c): c for c in (config, config.get_text_config())}.values():
        if (number := config_view(own).pad_token_id) is not None and number >= rows:
            own.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > rows:
        beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows and i != pad]
        if beyond:
            notices.append(
                f"the base has embeddings of {rows} tokens, and the tokenizer has more: "
                f"rows with {listed(sorted(beyond))} cannot be used"
            )
    return notices


def check_tokens(examples: Iterable[Example], tokenizer: Any, rows: int | None) -> None:
    """Raises: DataError that names rows and tokens without an embedding. rows: of the embedding."""
    if rows is None or len(tokenizer) <= rows:
        return
    if isinstance(examples, Dataset) and examples.store.arrays["ids"].max(initial=0) < rows:
        return
    beyond = [example for example in examples if example.ids and max(example.ids) >= rows]
    if not beyond:
        return
    ids = sorted({i for example in beyond for i in example.ids if i >= rows})
    raise DataError(
        f"{len(beyond)} rows have tokens that the base has no embedding of.",
        rows=listed(example.where for example in beyond),
        tokens=listed(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids),
        embedding=f"{rows} tokens",
        fix="use the tokenizer of the base, or a base whose embedding was resized for these tokens",
    )
