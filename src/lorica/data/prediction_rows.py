"""New rows for a classifier: their texts as tokens. A label is taken along, and not looked at."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.notices import Places
from lorica.data.overlong import apply_length_limit, limit_of
from lorica.data.pipeline import CHUNK
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.row_format import BadRow, columns_of, text_in
from lorica.data.source import Row, Source
from lorica.data.text_encoder import class_cut
from lorica.data.token_store import StoreWriter
from lorica.data.tokenise import ClassifierTokeniser
from lorica.errors import DataError, closest, listed


def load_prediction_rows(
    config: DataConfig, tokenizer: Any, max_length: int | None
) -> tuple[Sequence[Example], list[str | None], list[str]]:
    """(the rows, the label that each brings, notices) of the file or data set of `config`.

    max_length: what the base takes, in tokens; None knows no limit.
    Raises: DataError if rows have no text, or are too long under data.overlong: raise.
    """
    if Path(config.path).suffix.lower() == ".txt":
        raise DataError(
            f"{config.path} is one text, and no rows.",
            fix='give a .jsonl file of {"text": ...}, or a .csv file',
        )
    source, limit = Source(config), limit_of(config, max_length)
    rows = list(source)
    column = config.columns.get("text", "text")
    found = list(columns_of(rows, config).names)
    if column not in found:
        raise DataError(
            f"{config.path} has no column {column}, the text to predict from.",
            found=listed(found, 12),
            closest=closest(column, found),
            fix="name the column: --data.columns '{text: review}'",
        )
    named = config.columns.get("label", "label")
    texts = _texts(rows, column, config.path)
    labels = {row.where: row.fields.get(named) for row in rows}
    tokeniser, writer = ClassifierTokeniser(tokenizer), StoreWriter("int32", 0, texts=True)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        writer.add(chunk, tokeniser.tokens(chunk))
    whole = Dataset.whole(writer.store({"kind": "label"}))
    fitted = apply_length_limit(
        replace(whole, cut=partial(class_cut, tokenizer=tokenizer)), config, limit
    )
    told = [labels[example.where] for example in fitted.examples]
    notices = [*source.notices.texts, *fitted.notices, *tokeniser.notices()]
    return fitted.examples, [None if one is None else str(one).strip() for one in told], notices


def _texts(rows: list[Row], column: str, path: str) -> list[RenderedRow]:
    """Raises: DataError that names the rows without a text."""
    texts, bad = [], Places(most=3, between="; ")
    for row in rows:
        try:
            text = text_in(row.fields, column)
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
