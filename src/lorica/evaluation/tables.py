"""An evaluation as tables in the terminal: metrics, classes, sample rows, notices."""

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica.errors import counted
from lorica.evaluation.classes import Classes
from lorica.evaluation.measure import Measure, Report
from lorica.evaluation.stats import Interval

MAX_CHARACTERS = 300
"""Of a prompt or an answer."""
MAX_CLASSES = 10
"""Most classes of a printed confusion matrix, and most errors that are listed in its place."""


def show_report(report: Report, console: Console) -> None:
    """Print the metrics, a few rows, and the notices."""
    what = report.path if report.path == report.base else f"{report.path} on {report.base}"
    console.print(
        f"{what}: {counted(report.rows, 'row')}, {counted(report.tokens, 'label')} "
        f"of {report.data}",
        markup=False,
        soft_wrap=True,
    )
    console.print(_metrics(report.measures))
    console.print("in brackets: 95 % confidence intervals", markup=False)
    if report.classes:
        _show_classes(report.classes, console)
    for sample in report.samples:
        console.print(f"\n{sample.where}", markup=False)
        texts = {"prompt": sample.prompt, "reference": sample.wanted, "base": sample.base}
        for name, text in {**texts, "adapter": sample.adapter}.items():
            if text is not None:
                console.print(Text(f"  {name:<9} {_shortened(text)}"), soft_wrap=True)
    if report.notices:
        console.print()
    for notice in report.notices:
        console.print(Text(notice), soft_wrap=True)


def _metrics(measures: list[Measure]) -> Table:
    adapted = any(measure.adapter for measure in measures)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", min_width=len("perplexity"))
    for column in ("base", "adapter", "difference") if adapted else ("base",):
        table.add_column(column, no_wrap=True)
    if adapted:
        table.add_column("", min_width=len("difference"))  # the verdict
    for measure in measures:
        is_share = measure.unit == "share"
        cells = [measure.name.replace("_", " "), _written(measure.base, is_share)]
        if measure.adapter and measure.difference:
            cells += [
                _written(measure.adapter, is_share),
                _written(measure.difference, is_share, signed=True),
                str(measure.verdict),
            ]
        table.add_row(*cells)
    return table


def _show_classes(classes: Classes, console: Console) -> None:
    """Print F1 of each class, and the confusion matrix of the last system."""
    systems = ("base", "adapter")[: len(classes.confusion)]
    table = _table("F1 of class", "rows", *systems)
    for i, label in enumerate(classes.labels):
        bounds = [_percent(classes.f1(system, i)) for system in range(len(systems))]
        table.add_row(Text(label), f"{classes.confusion[0][i].sum():,}", *bounds)
    console.print(table)
    system, confusion = systems[-1], classes.confusion[-1]
    if len(classes.labels) <= MAX_CLASSES:
        table = _table(f"{system}: class", *(f"as {label}" for label in classes.labels))
        for label, row in zip(classes.labels, confusion, strict=True):
            table.add_row(Text(label), *(f"{count:,}" for count in row))
        console.print(table)
        return
    errors = [
        (int(confusion[i, j]), actual, predicted)
        for i, actual in enumerate(classes.labels)
        for j, predicted in enumerate(classes.labels)
        if i != j and confusion[i, j]
    ]
    for count, actual, predicted in sorted(errors, key=lambda e: -e[0])[:MAX_CLASSES]:
        line = f"{system}: {counted(count, 'row')} of {actual} predicted as {predicted}"
        console.print(Text(line), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if i else "left", no_wrap=True)
    return table


def _written(interval: Interval, is_share: bool, signed: bool = False) -> str:
    sign = "+" if signed else ""
    unit = (" points" if signed else " %") if is_share else ""
    scale, digits = (100, 1) if is_share else (1, _digits(abs(interval.value)))
    value, low, high = (
        f"{scale * number:{sign},.{digits}f}" if math.isfinite(number) else "?"
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit}\n\\[{low}, {high}]"


def _digits(size: float) -> int:
    """Digits behind the point of a value of this size."""
    return next((digits for limit, digits in ((10, 3), (100, 2), (1000, 1)) if size < limit), 0)


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{100 * v:.1f}" for v in (interval.value, interval.low, interval.high))
    return f"{value} % \\[{low}, {high}]"


def _shortened(text: str) -> str:
    """One line; of a long text its end, which has the question or the answer."""
    line = text.replace("\n", "⏎")
    return line if len(line) <= MAX_CHARACTERS else f"... {line[-MAX_CHARACTERS:]}"
