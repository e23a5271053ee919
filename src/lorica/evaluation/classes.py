"""How well classes are told apart: the confusion matrix, F1 of each class, and their mean.

F1 = 2 TP / (2 TP + FP + FN) is no share of rows, but grows with one: J = TP / (TP + FP + FN),
of the rows that are of the class or were taken for it, and F1 = 2 J / (1 + J). So it gets the
bounds of Wilson's interval for J.

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
    """What became of the rows of each class.

    labels: the names of the classes. confusion: of the base, and of the adapter if there is one:
        (C, C) rows of the class (down) that were taken for another (across).
    """

    labels: list[str]
    confusion: list[Ints]

    def f1(self, system: int, number: int) -> Interval | None:
        """Of one class. None: no row is of it, and none was taken for it."""
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


def confusion(wanted: Ints, chosen: Ints, count: int) -> Ints:
    """(C, C): how many rows of each class (down) were taken for each (across)."""
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (wanted, chosen), 1)
    return table


def macro_f1(wanted: Ints, chosen: list[Ints], count: int) -> list[Interval]:
    """The mean F1 over the classes that rows have, of each system, and their difference.

    chosen: of one system or of two: (rows,) each. count: C.
    Returns: intervals of one system, or of both and of second - first; by the jackknife.
    """
    parts = [_macro(wanted, one, count) for one in chosen]
    found = [jackknife(value, without) for value, without in parts]
    shares = [Interval(f.value, max(f.low, 0.0), min(f.high, 1.0)) for f in found]
    if len(parts) == 1:
        return shares
    (first, first_without), (second, second_without) = parts
    return [*shares, jackknife(second - first, second_without - first_without)]


def _macro(wanted: Ints, chosen: Ints, count: int) -> tuple[float, NDArray[np.float64]]:
    """(macro F1, (rows,) the same without each row)."""
    rows = np.bincount(wanted, minlength=count)
    taken = np.bincount(chosen, minlength=count)
    hits = np.bincount(wanted[wanted == chosen], minlength=count)
    there = rows > 0

    def f1(hit: Any, row: Any, take: Any) -> Any:
        return 2 * hit / np.maximum(row + take, 1)

    each = f1(hits, rows, taken)
    right = (wanted == chosen).astype(int)
    own = f1(hits[wanted] - right, rows[wanted] - 1, taken[wanted] - right) - each[wanted]
    other = f1(hits[chosen], rows[chosen], taken[chosen] - 1) - each[chosen]
    moved = own + np.where((right == 0) & there[chosen], other, 0.0)
    classes = there.sum()
    value = float(each[there].sum() / classes)
    return value, value + moved / classes
