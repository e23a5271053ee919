"""Load rows for `lorica predict`: their texts as tokens, with the label that a row may have."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.fields import BadRow, text_field
from lorica.data.notices import Places
from lorica.data.overlong import apply_length_limit, limit_of
from lorica.data.pipeline import CHUNK
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.row_format import columns_of
from lorica.data.source import Row, Source
from lorica.data.text_encoder import truncate_classified
from lorica.data.token_store import StoreWriter
from lorica.data.tokenise import ClassifierTokeniser
from lorica.errors import DataError, closest, listed


def load_prediction_rows(
    config: DataConfig, tokenizer: Any, max_length: int | None
) -> tuple[Sequence[Example], list[str | None], list[str]]:
    """(the rows, the label of each if it has one, notices) of the file or data set of `config`.

    max_length: the context of the base, in tokens; None: no limit.
    Raises: DataError if rows have no text, or are too long under data.overlong: raise.
    """
    if Path(config.path).suffix.lower() == ".txt":
        raise DataError(
            f"{config.path} is one text, not rows.",
            fix='give a .jsonl file of {"text": ...}, or a .csv file',
        )
    source, limit = Source(config), limit_of(config, max_length)
    rows = list(source)
    text_column = config.columns.get("text", "text")
    columns = list(columns_of(rows, config).names)
    if text_column not in columns:
        raise DataError(
            f"{config.path} has no column {text_column}, the text to predict from.",
            found=listed(columns, 12),
            closest=closest(text_column, columns),
            fix="name the column: --data.columns '{text: review}'",
        )
    label_column = config.columns.get("label", "label")
    texts = _texts(rows, text_column, config.path)
    labels = {row.where: row.fields.get(label_column) for row in rows}
    tokeniser, writer = ClassifierTokeniser(tokenizer), StoreWriter("int32", 0, texts=True)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        writer.add(chunk, tokeniser.tokens(chunk))
    dataset = Dataset.whole(writer.store({"kind": "label"}))
    dataset = replace(dataset, truncate=partial(truncate_classified, tokenizer=tokenizer))
    fitted = apply_length_limit(dataset, config, limit)
    notices = [*source.notices.texts, *fitted.notices, *tokeniser.notices()]
    given = [labels[example.where] for example in fitted.dataset]
    return fitted.dataset, [None if x is None else str(x).strip() for x in given], notices


def _texts(rows: list[Row], column: str, path: str) -> list[RenderedRow]:
    """Raises: DataError that names the rows without a text."""
    texts, bad = [], Places(most=3, between="; ")
    for row in rows:
        try:
            text = text_field(row.fields, column)
            texts.append(RenderedRow("label", (TextSpan(text, False),), False, where=row.where))
        except BadRow as error:
            bad.add(f"{row.where} {error}")
    if bad:
        raise DataError(
            f"{path}: {bad.count} of {len(rows)} rows cannot be used.",
            rows=str(bad),
            fix="give each a text, or remove it",
        )
    return texts
