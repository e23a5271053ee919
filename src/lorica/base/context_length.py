"""How many positions and tokens a base truly takes, whatever its config says.

RoBERTa counts positions from behind the padding token's id, so that of 514 rows of its table 512
are for tokens; XLNet says -1 for no limit; a tokenizer may have tokens that the embedding has not.
"""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from lorica.data.example import Example
from lorica.errors import DataError, listed

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
TABLE = re.compile(r"(^|[._])(pos|wpe|position|positions)([._]|$)")


def config_positions(config: Any) -> int | None:
    """The most tokens of a row that a config speaks of; None: it sets no limit.

    A dynamic RoPE goes on past what it was trained with, by its factor.
    """
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    most = next((n for n in found if isinstance(n, int) and n > 0), None)
    rope = getattr(text, "rope_parameters", None) or {}
    if most is None or not isinstance(rope, dict) or "dynamic" not in str(rope.get("rope_type")):
        return most
    return int(most * max(float(rope.get("factor") or 1.0), 1.0))


def has_rope(config: Any) -> bool:
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("rope_parameters", "rope_theta"))


def positions_of(config: Any, model: nn.Module) -> int | None:
    """The most tokens of a row that `model`, which may be without weights, has positions for."""
    most = config_positions(config)
    tables = [
        module.num_embeddings - _offset(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and TABLE.search(name)
    ]
    return most if most is None else min([most, *(n for n in tables if n > most // 2)])


def _offset(table: nn.Embedding) -> int:
    """Rows of a position table in front of the one for the first token."""
    if isinstance(offset := getattr(table, "offset", None), int):
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1


def embedding_rows(model: nn.Module) -> int | None:
    """How many tokens the base has embeddings of."""
    foreign: Any = model
    table = foreign.get_input_embeddings()
    return getattr(table, "num_embeddings", None)


def fit_padding(model: nn.Module, tokenizer: Any) -> list[str]:
    """Give tokenizer and config a padding token that the embedding has. In place.

    Padding is never read, so that any token will do. Returns: notices, also on tokens of the
    tokenizer that the embedding has not.
    """
    rows, foreign = embedding_rows(model), model
    if rows is None:
        return []
    lines = []
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= rows:
        end = tokenizer.eos_token_id
        token = end if end is not None and end < rows else 0
        lines.append(
            f"the padding token {tokenizer.pad_token!r} is number {pad}, and the base has "
            f"embeddings of {rows} tokens: rows are padded with token {token}"
        )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    config: Any = foreign.config
    for one in {id(c): c for c in (config, config.get_text_config())}.values():
        if (number := getattr(one, "pad_token_id", None)) is not None and number >= rows:
            one.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > rows:
        beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows and i != pad]
        if beyond:
            lines.append(
                f"the base has embeddings of {rows} tokens, and the tokenizer has more: "
                f"rows with {listed(sorted(beyond))} cannot be used"
            )
    return lines


def beyond(examples: Iterable[Example], rows: int | None) -> list[Example]:
    """The rows with a token that the embedding has no row for."""
    return [] if rows is None else [e for e in examples if e.ids and max(e.ids) >= rows]


def check_tokens(examples: Iterable[Example], tokenizer: Any, rows: int | None) -> None:
    """Raises: DataError naming rows and tokens that the embedding has not."""
    if rows is None or len(tokenizer) <= rows or not (found := beyond(examples, rows)):
        return
    ids = sorted({i for e in found for i in e.ids if i >= rows})
    raise DataError(
        f"{len(found)} rows have tokens that the base has no embedding of.",
        rows=listed(e.where for e in found),
        tokens=listed(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids),
        embedding=f"{rows} tokens",
        fix="use the tokenizer of the base, or a base whose embedding was resized for these tokens",
    )
