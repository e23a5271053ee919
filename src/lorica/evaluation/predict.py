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
from lorica.errors import ConfigError, TrainingError, counted, listed
from lorica.evaluation.evaluate import data_settings
from lorica.evaluation.loss import class_probabilities
from lorica.evaluation.predictions import most_probable
from lorica.formats.open_model import open_model

MAX_ROWS, MAX_CHARACTERS = 20, 100
"""Rows that are printed, and characters of each."""


@dataclass(frozen=True)
class Predictions:
    """The predicted class of every row.

    labels: the classes. rows: one JSON object each: where, text, label, probability,
    probabilities of all classes, and wanted: the row's own label, if it has one.
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
    offload: str | None = None,
) -> Predictions:
    """The classes that the classifier at `path` predicts for the rows of `data`.

    path: a run folder, an adapter folder, or a base alone. data: rows with a text; their labels
        are copied to the result, and not used.
    base: another place to load the base from; None: where the adapter says it was.
    limit: only the first rows. quantisation: of the base; None: as in training. offload: "disk" or
        "cpu": where the weights of the base wait.

    Raises: ConfigError if the model is no classifier; BaseError, FileError, DataError for what
        cannot be opened or used; TrainingError if a probability is not finite.
    """
    began, config = time.perf_counter(), data_settings(data, limit)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}.", fix="it must be at least 1")
    loaded, _ = open_model(
        path,
        base=base,
        dtype=dtype,
        allow_base=allow_base,
        quantisation=quantisation,
        offload=offload,
    )
    if loaded.labels is None:
        raise ConfigError(
            f"{path} is a language model: it predicts no classes.",
            fix=f'lorica generate {path} --prompt "..."',
        )
    examples, labels, notices = load_prediction_rows(config, loaded.tokenizer, loaded.max_length)
    rows = [
        row if label is None else row | {"wanted": label}
        for row, label in zip(predict_loaded(loaded, examples, batch_size), labels, strict=True)
    ]
    return Predictions(
        loaded.labels,
        rows,
        [*loaded.notices, *notices],
        time.perf_counter() - began,
        str(path),
        config.path,
    )


def predict_loaded(
    loaded: LoadedModel, examples: Sequence[Example], batch_size: int = 16
) -> list[dict[str, Any]]:
    """One object for each row, in the order of the rows, by a loaded classifier."""
    labels = loaded.labels or []
    table = class_probabilities(loaded.model, examples, batch=batch_size)
    not_finite = [examples[i].where for i in np.flatnonzero(~np.isfinite(table).all(1)).tolist()]
    if not_finite:
        raise TrainingError(
            f"the probabilities of {len(not_finite)} of {counted(len(examples), 'row')} are not "
            "finite.",
            rows=listed(not_finite),
            fix="load the base in float32, or train with a lower learning rate",
        )
    return [
        {"where": example.where, "text": example.source.text if example.source else None}
        | most_probable(row, labels)
        | {"probabilities": dict(zip(labels, row.astype(float).round(6).tolist(), strict=True))}
        for example, row in zip(examples, table, strict=True)
    ]


def show_predictions(predictions: Predictions, console: Console) -> None:
    """Print the first rows, the number of rows of each class, and the notices."""
    width = max(map(len, predictions.labels))
    for row in predictions.rows[:MAX_ROWS]:
        text = " ".join((row["text"] or "").split())
        brief = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
        console.print(
            Text(f"{row['label']:<{width}}  {row['probability']:6.1%}  {brief}"), soft_wrap=True
        )
    if (hidden := len(predictions.rows) - MAX_ROWS) > 0:
        console.print(f"... and {counted(hidden, 'more row')}", markup=False)
    counts = Counter(row["label"] for row in predictions.rows)
    console.print(
        Text(
            f"{counted(len(predictions.rows), 'row')} of {predictions.data}: "
            + ", ".join(f"{label} {counts[label]:,}" for label in predictions.labels)
        ),
        soft_wrap=True,
    )
    for notice in predictions.notices:
        console.print(Text(notice), soft_wrap=True)
