"""`lorica.evaluate`: open a run, an adapter or a base, and measure it on rows."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorica.base.context_length import check_tokens, embedding_rows
from lorica.base.load import LoadedModel
from lorica.data.config import DataConfig
from lorica.data.load import Data, load_data
from lorica.data.prompt_format import format_notices, with_training_templates
from lorica.errors import ConfigError, DataError
from lorica.evaluation.forgetting import before_settings, load_before_rows, measure_forgetting
from lorica.evaluation.lm_eval_reader import (
    PREFIX,
    check_lm_eval_tasks,
    measure_lm_eval,
    split_tasks,
)
from lorica.evaluation.measure import Report, evaluate_loaded
from lorica.evaluation.predictions import write
from lorica.evaluation.task import tasks_named
from lorica.evaluation.trained_rows import seen_in_training
from lorica.formats import commit
from lorica.formats.open_model import open_model


def evaluate(
    path: str | Path,
    data: DataConfig | str | dict[str, Any],
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    exact_match: bool = True,
    tasks: str | Sequence[str] = (),
    before: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    quantisation: str | None = None,
    offload: str | None = None,
) -> Report:
    """Measure the adapter at `path` beside its base, on all rows of `data`.

    path: a run folder, an adapter folder, or a base alone (folder, hub id, "bundled").
    base: another place to load the base from; None: where the adapter says it was.
    dtype: of the base, or "auto"; None: as in training, and float32 for a base alone.
    exact_match, tasks: how answers are compared with references. tasks: names of files in
        lorica.evaluation.tasks: "bleu", ["bleu", "chrf"]; or a benchmark, "lm_eval:arc_easy".
    before: rows that the base knew before training, a file or "own" for the domain that the bundled
        base was pretrained on: the loss on them shows what the adapter forgot.
    limit: only the first rows. max_new_tokens: of an answer; None: as the references need.
    quantisation: of the base; None: as in training; "none": the float base.
    offload: "disk" or "cpu": where the weights of the base wait; see lorica.base.offload.

    Raises: TrainingError if the adapter does nothing; BaseError, FileError, DataError,
        ConfigError for what cannot be opened or used; MissingError if a package of a task is not
        installed.
    """
    own, of_lm_eval = split_tasks(tasks)
    compared = tasks_named(own)
    check_lm_eval_tasks(of_lm_eval)
    _check_counts(batch_size=batch_size, max_new_tokens=max_new_tokens)
    began = time.perf_counter()
    config = data_settings(data, limit)
    loaded, adapted = open_model(
        path,
        base=base,
        dtype=dtype,
        allow_base=allow_base,
        quantisation=quantisation,
        offload=offload,
    )
    _check_writes_text(loaded, [*own, *(PREFIX + name for name in of_lm_eval)], before, path)
    known_config = None if before is None else before_settings(before, loaded)
    config = with_training_templates(loaded.prompt_format, config)
    rows = _rows(config, loaded, path)
    known = None if known_config is None else load_before_rows(known_config, loaded)
    notices = seen_in_training(Path(path), rows.train.contents)
    notices += format_notices(loaded.prompt_format, rows.prompt_format, loaded.tokenizer)
    report = evaluate_loaded(
        loaded,
        rows.train,
        adapted=adapted,
        exact_match=exact_match,
        tasks=compared,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    if known is not None:
        report = measure_forgetting(report, loaded, known, rows.train, adapted, batch_size)
    if of_lm_eval:
        report = measure_lm_eval(report, loaded, of_lm_eval, adapted, batch_size)
    return replace(
        report,
        path=str(path),
        base=loaded.path,
        data=config.path,
        notices=[*loaded.notices, *notices, *rows.notices, *report.notices],
        seconds=time.perf_counter() - began,
    )


def record(report: Report, run: Path) -> None:
    """Write a report into the results.json of its run, and its rows into predictions.jsonl."""
    results = commit.read_json(run / "results.json")
    results["evaluation"] = report.as_dict()
    for measure in report.measures:
        if measure.adapter is not None:
            results[measure.name] = {"base": measure.base.value, "tuned": measure.adapter.value}
    write(run / "predictions.jsonl", report.predictions)
    commit.write_json(run / "results.json", results)


def data_settings(data: DataConfig | str | dict[str, Any], limit: int | None) -> DataConfig:
    """The settings of the rows, without a split: every row is measured."""
    try:
        config = data if isinstance(data, DataConfig) else DataConfig.model_validate(data)
        changes = {"validation": 0.0, **({"limit": limit} if limit is not None else {})}
        return DataConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        wrong = {".".join(map(str, e["loc"])) or "data": e["msg"] for e in error.errors()}
        raise ConfigError("the data settings are wrong.", **wrong) from None


def _check_counts(**counts: int | None) -> None:
    """Raises: ConfigError if one is below 1; None is allowed."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name} is {count}; it must be at least 1.", fix=f"change {name}")


def _check_writes_text(
    loaded: LoadedModel, tasks: Sequence[str], before: str | None, path: str | Path
) -> None:
    """Raises: ConfigError if a classifier is asked for what only a language model has."""
    if loaded.labels is None:
        return
    if tasks:
        raise ConfigError(
            f"{path} is a classifier: it writes no text that {', '.join(tasks)} could score.",
            fix="leave --task out; accuracy, macro F1 and F1 of each class are in every report",
        )
    if before is not None:
        raise ConfigError(
            f"{path} is a classifier: it has no loss on text, so --before cannot be measured.",
            fix="leave --before out",
        )


def _rows(config: DataConfig, loaded: LoadedModel, path: str | Path) -> Data:
    """The rows. Raises: DataError if they are not of the kind that the model was trained on."""
    rows = load_data(
        config,
        loaded.tokenizer,
        seed=0,
        max_length=loaded.max_length,
        labels=loaded.labels,
        texts=True,
    )
    check_tokens(rows.train, loaded.tokenizer, embedding_rows(loaded.model))
    if (rows.labels is None) != (loaded.labels is None):
        kind = "a language model" if loaded.labels is None else "a classifier"
        raise DataError(
            f"{config.path} has rows {'with' if rows.labels else 'without'} classes, but {path} "
            f"is {kind}.",
            fix="give rows of the kind that it was trained on",
        )
    return rows
