"""Scores of rows as a table whose mean is the measure, for means and for corpus measures alike.

A corpus measure (BLEU) and a mean weighted by tokens are not means of their rows. Their
pseudo-values are, nearly: value + (n - 1) (value - value without the row). So every measure of a
side becomes one table of rows x seeds, and one formula has the variance of all of them: that of
the pseudo-values of one run is the jackknife's.

Source: Miller, "The jackknife - a review", 1974, Biometrika 61:1-15.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lorica.compare.results import Better, MeasureScores
from lorica.evaluation.stats import Floats, ratios

Combine = Callable[[Floats], Any]
"""Sums of the sufficient statistics, (..., statistics), to values of a corpus measure, (...)."""
Scale = Literal["share", "positive", "any", "difference"]
MIN_ROWS, MIN_SEEDS = 3, 2


@dataclass(frozen=True)
class Table:
    """One measure of one side.

    values: (seeds,): over all rows. rows: (rows, seeds): pseudo-values. effective: the number of
    rows of equal weight that tell as much. hits: every row is a hit or a miss. scale: shares lie
    in [0, 1], positive figures are losses, differences and all others may have either sign.
    """

    seeds: tuple[int, ...]
    better: Better
    values: Floats
    rows: Floats
    effective: float
    hits: bool
    scale: Scale

    @property
    def value(self) -> float:
        return float(self.values.mean())

    def at(self, seeds: Sequence[int]) -> "Table":
        """The same with these seeds alone."""
        kept = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=tuple(seeds), values=self.values[kept], rows=self.rows[:, kept])

    def minus(self, other: "Table") -> "Table":
        """The paired difference: the same rows, the same seeds."""
        return Table(
            seeds=self.seeds,
            better=self.better,
            values=self.values - other.values,
            rows=self.rows - other.rows,
            effective=min(self.effective, other.effective),
            hits=self.hits and other.hits,
            scale="difference",
        )


def table_of(
    measure: str, runs: Mapping[int, MeasureScores], combine: Mapping[str, Combine]
) -> Table:
    """The table of a measure. runs: its scores by seed, at least one, all on the same rows.

    Errors: ValueError if the runs have different rows, or a corpus measure has no `combine`.
    """
    columns = [pseudo_values(measure, scores, combine) for scores in runs.values()]
    if len({len(values) for values, _ in columns}) > 1:
        raise ValueError(f"{measure}: the runs were scored on different rows")
    better = next(iter(runs.values())).better
    values = np.array([run.value for run in runs.values()])
    scores = np.array([score for run in runs.values() for score in run.rows], float)
    return Table(
        seeds=tuple(runs),
        better=better,
        values=values,
        rows=np.stack([values for values, _ in columns], axis=1),
        effective=min(effective for _, effective in columns),
        hits=bool(np.isin(scores, (0.0, 1.0)).all()),
        scale=scale_of(np.concatenate([scores, values]), better),
    )


def scale_of(scores: Floats, better: Better) -> Scale:
    """What values a measure can have, from those that were seen, of rows and of whole runs."""
    if scores.min() >= 0:
        if scores.max() <= 1 and better == "higher":
            return "share"
        if better == "lower":
            return "positive"
    return "any"


def pseudo_values(
    measure: str, scores: MeasureScores, combine: Mapping[str, Combine]
) -> tuple[Floats, float]:
    """(rows,) pseudo-values of one run, and the effective number of its rows."""
    if len(scores.statistics):
        if measure not in combine:
            raise ValueError(f"{measure}: nothing combines its statistics to a value")
        table = np.asarray(scores.statistics, float)
        totals, count = table.sum(axis=0), len(table)
        whole = float(combine[measure](totals))
        without = np.asarray(combine[measure](totals - table), float)
        return whole + (count - 1) * (whole - without), float(count)
    rows = np.asarray(scores.rows, float)
    weights = np.asarray(scores.weights, float) if len(scores.weights) else np.ones(len(rows))
    ratio = ratios(rows * weights, weights)
    count = ratio.left_out.shape[1]
    return ratio.values[0] + (count - 1) * (ratio.values[0] - ratio.left_out[0]), ratio.effective
