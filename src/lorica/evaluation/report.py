"""`lorica.evaluate`: open a run, an adapter or a base, measure it on rows, and show it."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica import plain_files
from lorica.base.bundled import NAME
from lorica.base.context_length import check_tokens, embedding_rows
from lorica.base.load import LoadedModel, own_classes
from lorica.base.load import load as load_base
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.data.prompt_format import format_notices, with_training_templates
from lorica.errors import ConfigError, DataError, FileError
from lorica.evaluation.class_tables import show_classes
from lorica.evaluation.measure import Measure, Report, evaluate_loaded
from lorica.evaluation.predictions import write
from lorica.evaluation.stats import Interval
from lorica.evaluation.trained_rows import seen_in_training
from lorica.formats import commit
from lorica.formats.adapter_folder import adapter_folder
from lorica.formats.folder import PICKLED, WEIGHTS, find, is_adapter
from lorica.formats.open_adapter import open_adapter

SHARES = ("token_accuracy", "exact_match", "accuracy", "macro_f1")
SHOWN = 300  # characters of a prompt or an answer


def evaluate(
    path: str | Path,
    data: DataConfig | str | dict[str, Any],
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    exact_match: bool = True,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    quantisation: str | None = None,
) -> Report:
    """Measure the adapter at `path` beside its base, on all rows of `data`.

    path: a run folder, an adapter folder, or a base alone (folder, hub id, "bundled").
    base: another place to load the base from; None: where the adapter says it was.
    dtype: "float32" or "bfloat16"; None: as in training, and float32 for a base alone.
    limit: only the first rows. max_new_tokens: of an answer; None: as the references need.
    quantisation: of the base; None: as in training; "none": the float base.

    Raises: TrainingError if the adapter does nothing; BaseError, FileError, DataError,
        ConfigError for what cannot be opened or used.
    """
    if batch_size < 1 or (max_new_tokens is not None and max_new_tokens < 1):
        raise ConfigError(
            "batch_size and max_new_tokens must be at least 1.",
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
    began = time.perf_counter()
    config = data_settings(data, limit)
    opened, adapted = open_measured(path, base, dtype, allow_base, quantisation)
    config = with_training_templates(opened.prompt_format, config)
    rows = load_data(
        config,
        opened.tokenizer,
        seed=0,
        max_length=opened.max_length,
        labels=opened.labels,
        texts=True,
    )
    check_tokens(rows.train, opened.tokenizer, embedding_rows(opened.model))
    if (rows.labels is None) != (opened.labels is None):
        kinds = ("a language model", "a classifier")
        raise DataError(
            f"{config.path} holds rows {'with' if rows.labels else 'without'} classes, but {path} "
            f"is {kinds[opened.labels is not None]}.",
            fix="give rows of the kind that it was trained on",
        )
    told = seen_in_training(Path(path), rows.train.contents)
    told += format_notices(opened.prompt_format, rows.prompt_format, opened.tokenizer)
    report = evaluate_loaded(
        opened,
        rows.train,
        adapted=adapted,
        exact_match=exact_match,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return replace(
        report,
        path=str(path),
        base=opened.path,
        data=config.path,
        notices=[*opened.notices, *told, *rows.notices, *report.notices],
        seconds=time.perf_counter() - began,
    )


def record(report: Report, run: Path) -> None:
    """Put what was measured into a run's results.json, beside what training left there.

    The rows are in its predictions.jsonl.
    """
    results = commit.read_json(run / "results.json")
    results["evaluation"] = report.as_dict()
    for measure in report.measures:
        if measure.adapter is not None:
            results[measure.name] = {"base": measure.base.value, "tuned": measure.adapter.value}
    write(run / "predictions.jsonl", report.predictions)
    commit.write_json(run / "results.json", results)


def data_settings(data: DataConfig | str | dict[str, Any], limit: int | None) -> DataConfig:
    """The rows' settings, with every row kept for measuring."""
    try:
        config = data if isinstance(data, DataConfig) else DataConfig.model_validate(data)
        changes = {"validation": 0.0, **({"limit": limit} if limit is not None else {})}
        return DataConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        wrong = {".".join(map(str, e["loc"])) or "data": e["msg"] for e in error.errors()}
        raise ConfigError("the data settings are wrong.", **wrong) from None


def open_measured(
    path: str | Path,
    base: str | None,
    dtype: str | None,
    allow_base: str | None,
    quantisation: str | None,
) -> tuple[LoadedModel, bool]:
    """(a run, an adapter or a base as a model, it carries an adapter)."""
    folder = adapter_folder(path)
    if is_adapter(folder) or any(plain_files.is_file(folder / name) for name in (WEIGHTS, PICKLED)):
        opened = open_adapter(
            folder, base=base, dtype=dtype, allow_base=allow_base, quantisation=quantisation
        )
        if opened.labels is not None and len(opened.labels) < 2:
            raise FileError(
                f"the head of {folder} has one output, as a regression has: it gives no classes.",
                fix="lorica.load it on a model that you have loaded",
            )
        return opened, True
    if not folder.exists() and str(path) != NAME and Path(folder.parts[0]).is_dir():
        find(folder)  # "runs/demoo" is a misspelt folder, not a name on the hub
    if base is not None:
        raise ConfigError(
            f"{path} is a base, and base={base!r} names another.",
            fix="leave base out, or name an adapter",
        )
    labels = own_classes(str(path), needed=True)
    return load_base(
        str(path), dtype=dtype or "float32", labels=labels, quantisation=quantisation
    ), False


def show(report: Report, console: Console) -> None:
    """Print a report: the figures, a few rows, and the named lines."""
    what = report.path if report.path == report.base else f"{report.path} on {report.base}"
    console.print(
        f"{what}: {report.rows:,} rows, {report.tokens:,} labels of {report.data}",
        markup=False,
        soft_wrap=True,
    )
    adapted = any(measure.adapter for measure in report.measures)
    table = Table("", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("base", "adapter", "difference") if adapted else ("base",):
        table.add_column(column, no_wrap=True)
    if adapted:
        table.add_column("")
    for measure in report.measures:
        table.add_row(*_cells(measure, adapted))
    console.print(table)
    console.print("in brackets: 95 % intervals", markup=False)
    if report.classes:
        show_classes(report.classes, console)
    for sample in report.samples:
        console.print(f"\n{sample.where}", markup=False)
        parts = {"prompt": sample.prompt, "wanted": sample.wanted, "base": sample.base}
        for name, text in {**parts, "adapter": sample.adapter}.items():
            if text is not None:
                console.print(Text(f"  {name:<8} {_brief(text)}"), soft_wrap=True)
    if report.notices:
        console.print()
    for line in report.notices:
        console.print(Text(line), soft_wrap=True)


def _cells(measure: Measure, adapted: bool) -> list[str]:
    share = measure.name in SHARES
    cells = [measure.name.replace("_", " "), _shown(measure.base, share)]
    if adapted and measure.adapter and measure.difference:
        cells += [
            _shown(measure.adapter, share),
            _shown(measure.difference, share, signed=True),
            measure.verdict or "",
        ]
    return cells


def _shown(interval: Interval, share: bool, signed: bool = False) -> str:
    sign = "+" if signed else ""
    unit = (" points" if signed else " %") if share else ""
    size = abs(interval.value)
    scale, digits = (100, 1) if share else (1, 3 if size < 10 else 2 if size < 100 else 1)
    value, low, high = (
        f"{scale * number:{sign}.{digits}f}" if math.isfinite(number) else "?"
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit}\n\\[{low}, {high}]"


def _brief(text: str) -> str:
    """One line; of a long text its end, where the answer or the question stands."""
    line = text.replace("\n", "⏎")
    return line if len(line) <= SHOWN else f"... {line[-SHOWN:]}"
