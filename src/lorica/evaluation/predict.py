"""`lorica.predict`: the classes of new rows, by a classifier."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from lorica.base.load import LoadedModel
from lorica.data.config import DataConfig
from lorica.data.example import Example
from lorica.data.prediction_rows import load_prediction_rows
from lorica.errors import ConfigError, TrainingError, listed
from lorica.evaluation.loss import class_probabilities
from lorica.evaluation.predictions import choice
from lorica.evaluation.report import data_settings, open_measured

SHOWN, WIDTH = 20, 100
"""Rows that are printed, and characters of each."""


@dataclass(frozen=True)
class Predictions:
    """The class of every row.

    labels: the classes. rows: one JSON object each: where, text, label, probability, and
    probabilities of all classes; wanted: the label that the row brought.
    """

    labels: list[str]
    rows: list[dict[str, Any]]
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    path: str = ""
    data: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "seconds": round(self.seconds, 3)}


def predict(
    path: str | Path,
    data: DataConfig | str | dict[str, Any],
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    quantisation: str | None = None,
) -> Predictions:
    """The classes that the classifier at `path` gives to the rows of `data`.

    path: a run folder, an adapter folder, or a base alone. data: rows with a text; labels are
        taken along, and not looked at.
    base: another place to load the base from; None: where the adapter says it was.
    limit: only the first rows. quantisation: of the base; None: as in training.

    Raises: ConfigError if the model is no classifier; BaseError, FileError, DataError for what
        cannot be opened or used; TrainingError if a probability is not finite.
    """
    began, config = time.perf_counter(), data_settings(data, limit)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}.", fix="it must be at least 1")
    opened, _ = open_measured(path, base, dtype, allow_base, quantisation)
    if opened.labels is None:
        raise ConfigError(
            f"{path} is a language model, which gives no classes.",
            fix=f'lorica generate {path} --prompt "..."',
        )
    examples, brought, notices = load_prediction_rows(config, opened.tokenizer, opened.max_length)
    rows = [
        told if label is None else told | {"wanted": label}
        for told, label in zip(predict_loaded(opened, examples, batch_size), brought, strict=True)
    ]
    return Predictions(
        opened.labels,
        rows,
        [*opened.notices, *notices],
        time.perf_counter() - began,
        str(path),
        config.path,
    )


def predict_loaded(
    base: LoadedModel, examples: Sequence[Example], batch_size: int = 16
) -> list[dict[str, Any]]:
    """One object for each row, in the order of the rows, by a classifier that is open already."""
    labels = base.labels or []
    table = class_probabilities(base.model, examples, batch=batch_size)
    wrong = [examples[i].where for i in np.flatnonzero(~np.isfinite(table).all(1)).tolist()]
    if wrong:
        raise TrainingError(
            f"the probabilities of {len(wrong)} of {len(examples)} rows are not finite.",
            rows=listed(wrong),
            fix="load the base in float32, or train with a lower learning rate",
        )
    return [
        {"where": example.where, "text": example.source.text if example.source else None}
        | choice(row, labels)
        | {"probabilities": dict(zip(labels, row.astype(float).round(6).tolist(), strict=True))}
        for example, row in zip(examples, table, strict=True)
    ]


def show_predictions(done: Predictions, console: Console) -> None:
    """Print the first rows, how many have each class, and the notices."""
    width = max(map(len, done.labels))
    for row in done.rows[:SHOWN]:
        text = " ".join((row["text"] or "").split())
        brief = text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
        console.print(
            Text(f"{row['label']:<{width}}  {row['probability']:6.1%}  {brief}"), soft_wrap=True
        )
    if len(done.rows) > SHOWN:
        console.print(f"... and {len(done.rows) - SHOWN:,} more rows", markup=False)
    counts = Counter(row["label"] for row in done.rows)
    console.print(
        Text(
            f"{len(done.rows):,} rows of {done.data}: "
            + ", ".join(f"{label} {counts[label]:,}" for label in done.labels)
        ),
        soft_wrap=True,
    )
    for line in done.notices:
        console.print(Text(line), soft_wrap=True)
