"""Metrics of a classifier: the confusion matrix, F1 of each class, and macro F1.

F1 = 2 TP / (2 TP + FP + FN) is no share of rows, but it increases with one: J = TP / (TP + FP +
FN), of the rows that are of the class or were predicted as it; F1 = 2 J / (1 + J). So its bounds
are those of Wilson's interval for J.

Letters: C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorica.evaluation.stats import Interval, jackknife, wilson

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """The predictions for the rows of each class.

    labels: the names of the classes. confusion: of the base, and of the adapter if there is one:
        (C, C), rows of the class (down) that were predicted as another (across).
    """

    labels: list[str]
    confusion: list[Ints]

    def f1(self, system: int, number: int) -> Interval | None:
        """Of one class. None: no row is of it, and none was predicted as it."""
        table = self.confusion[system]
        hits = int(table[number, number])
        rows = int(table[number].sum() + table[:, number].sum()) - hits
        if not rows:
            return None
        share = wilson(hits, rows)
        return Interval(*(2 * j / (1 + j) for j in (share.value, share.low, share.high)))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        names = ("base", "adapter")[: len(self.confusion)]
        f1 = {
            label: {"rows": int(self.confusion[0][i].sum())}
            | {name: (f := self.f1(s, i)) and f.as_dict() for s, name in enumerate(names)}
            for i, label in enumerate(self.labels)
        }
        tables = {name: table.tolist() for name, table in zip(names, self.confusion, strict=True)}
        return {"labels": self.labels, "confusion": tables, "f1": f1}


def confusion(actual: Ints, predicted: Ints, count: int) -> Ints:
    """(C, C): how many rows of each class (down) were predicted as each (across)."""
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (actual, predicted), 1)
    return table


def macro_f1(actual: Ints, predictions: list[Ints], count: int) -> list[Interval]:
    """The mean F1 over the classes that rows have, of each system, and their difference.

    predictions: of one system or of two: (rows,) each. count: C.
    Returns: intervals of one system, or of both and of second - first; by the jackknife.
    """
    values = [_macro_f1(actual, predicted, count) for predicted in predictions]
    intervals = [jackknife(value, left_out) for value, left_out in values]
    clipped = [Interval(f.value, max(f.low, 0.0), min(f.high, 1.0)) for f in intervals]
    if len(values) == 1:
        return clipped
    (first, first_left_out), (second, second_left_out) = values
    return [*clipped, jackknife(second - first, second_left_out - first_left_out)]


def _macro_f1(actual: Ints, predicted: Ints, count: int) -> tuple[float, NDArray[np.float64]]:
    """(macro F1, (rows,) the same without each row)."""
    rows = np.bincount(actual, minlength=count)
    taken = np.bincount(predicted, minlength=count)
    hits = np.bincount(actual[actual == predicted], minlength=count)
    present = rows > 0

    def f1(hits: Any, rows: Any, taken: Any) -> Any:
        return 2 * hits / np.maximum(rows + taken, 1)

    per_class = f1(hits, rows, taken)
    right = (actual == predicted).astype(int)
    # Without a row, the F1 of its own class changes, and that of the class it was predicted as.
    own = f1(hits[actual] - right, rows[actual] - 1, taken[actual] - right) - per_class[actual]
    other = f1(hits[predicted], rows[predicted], taken[predicted] - 1) - per_class[predicted]
    change = own + np.where((right == 0) & present[predicted], other, 0.0)
    classes = present.sum()
    value = float(per_class[present].sum() / classes)
    return value, value + change / classes
