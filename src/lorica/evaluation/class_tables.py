"""The classes of a report as a person reads them: F1 of each, and who is taken for whom."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica.evaluation.classes import Classes
from lorica.evaluation.stats import Interval

MOST_IN_A_TABLE = 10
"""Classes up to which the whole confusion matrix is shown, and errors that are listed beyond."""


def show_classes(classes: Classes, console: Console) -> None:
    """Print F1 of each class, and the confusion matrix of the last system."""
    systems = ("base", "adapter")[: len(classes.confusion)]
    table = _table("F1 of class", "rows", *systems)
    for i, label in enumerate(classes.labels):
        bounds = [_percent(classes.f1(system, i)) for system in range(len(systems))]
        table.add_row(Text(label), f"{classes.confusion[0][i].sum():,}", *bounds)
    console.print(table)
    who, last = systems[-1], classes.confusion[-1]
    if len(classes.labels) <= MOST_IN_A_TABLE:
        table = _table(f"{who}: class", *(f"as {label}" for label in classes.labels))
        for label, row in zip(classes.labels, last, strict=True):
            table.add_row(Text(label), *(f"{count:,}" for count in row))
        console.print(table)
        return
    errors = [
        (int(last[i, j]), f"{last[i, j]:,} rows of {one} are taken for {other}")
        for i, one in enumerate(classes.labels)
        for j, other in enumerate(classes.labels)
        if i != j and last[i, j]
    ]
    for _, line in sorted(errors, key=lambda error: -error[0])[:MOST_IN_A_TABLE]:
        console.print(Text(f"{who}: {line}"), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if i else "left", no_wrap=True)
    return table


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{100 * v:.1f}" for v in (interval.value, interval.low, interval.high))
    return f"{value} % \\[{low}, {high}]"
