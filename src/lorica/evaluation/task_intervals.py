"""The intervals of a task: by Wilson and Newcombe for right or wrong, by the jackknife for means of
scores from 0 to 1, and by the bootstrap for values that are no mean over rows.
"""

from collections.abc import Sequence

import numpy as np

from lorica.evaluation.bootstrap import bootstrap
from lorica.evaluation.stats import Interval, newcombe, ratios, wilson
from lorica.evaluation.task import Task, TaskScores


def task_intervals(task: Task, systems: Sequence[TaskScores]) -> list[Interval]:
    """Of one system, or of both and of second - first. systems: on the same rows."""
    rows = [scores.rows[scored_rows(scores)] for scores in systems]
    if systems[0].statistics is not None:
        tables = [s.statistics[scored_rows(s)] for s in systems if s.statistics is not None]
        most = 1.0 if task.unit == "share" else 100.0
        bounds = [(0.0, most), (0.0, most), (-most, most)]
        pairs = zip(bootstrap(task.combine, tables), bounds, strict=False)
        return [_widened(interval, len(rows[0]), *own) for interval, own in pairs]
    if rows[0].dtype == bool:
        return hit_intervals(rows)
    means = ratios(rows, np.ones(len(rows[0])))
    intervals = [means.share(i) for i in range(len(rows))]
    return intervals if len(rows) == 1 else [*intervals, means.share_difference(0, 1)]


def hit_intervals(hits: Sequence[np.ndarray]) -> list[Interval]:
    """Of the share of rows that are right. hits: (R,) bool of each system."""
    intervals = [wilson(int(own.sum()), len(own)) for own in hits]
    return intervals if len(hits) == 1 else [*intervals, newcombe(hits[0], hits[1])]


def _widened(interval: Interval, rows: int, least: float, most: float) -> Interval:
    """The interval, where no resample differs because every row has the least or the most score, or
    no row differs between the systems: then the largest value that so few rows can miss.

    least, most: what the value can be.
    """
    if not interval.low == interval.high == interval.value:
        return interval
    value, missed = interval.value, most * wilson(0, rows).high
    return Interval(value, max(value - missed, least), min(value + missed, most))


def scored_rows(scores: TaskScores) -> np.ndarray:
    """(R,) bool: the rows that the task has not left out."""
    if scores.weights is None:
        return np.ones(len(scores.rows), bool)
    return scores.weights > 0
