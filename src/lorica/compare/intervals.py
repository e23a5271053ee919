"""How far a figure of a study varies: over rows, over seeds, and over both.

A study has hundreds of rows and three seeds or so. Both are samples: other rows of the task and
other seeds would give other figures. The variance of a figure is

    rows:   the variance over rows of its mean over the seeds (the jackknife), and
    seeds:  the variance over seeds of its mean over the rows.

Their sum is a little too large, for noise of one row in one run is in both; that is on the safe
side. The variance over three seeds is itself hardly known: two degrees of freedom. Where a study
has three sides or more, it is averaged with that of all sides, if that is larger, which doubles
the degrees of freedom.

Half an interval over both is the root of the sum of the squares of half the intervals over rows and
over seeds. So each part keeps its own degrees of freedom, and the interval covers at least 95 %
whatever the parts are (Banerjee 1960). Welch's approximation, the usual one, takes the uncertain
part for known whenever it comes out small: in a study of 12 sides without differences it finds one
in up to 21 of 100 studies, not in 5. A bootstrap over three seeds has the same fault.
docs/guides/statistics.md has the figures of all of them.

Source: Banerjee, "Approximate confidence interval for linear functions of means of k populations
    when the population variances are not equal", 1960, Sankhya 22:357-358.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lorica.compare.influence import MIN_ROWS, MIN_SEEDS, Table
from lorica.compare.student import quantile
from lorica.evaluation.stats import Floats, Interval, wilson_of_share

MIN_SIDES = 3
"""Fewest sides whose variances over seeds are averaged."""
MIN_STEADY, UNSTEADY = 4, 5.0
"""Fewest sides of which one can be called unsteady, and by how much it differs from the median."""
LEVEL = 0.05
"""Intervals are of 95 %."""
P_VALUES = np.exp(np.linspace(0.0, math.log(1e-12), 200))
"""The p-values at which quantiles are tabulated, from 1 down."""


@dataclass(frozen=True)
class Variance:
    """The variance of a figure, in its parts.

    mixed: the part of `rows` and of `seeds` that is noise of one row in one run.
    row_df, seed_df: degrees of freedom. row_count, seed_count: what it was measured with.
    """

    rows: float
    seeds: float
    mixed: float
    row_df: float
    seed_df: float
    row_count: int
    seed_count: int

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.rows + self.seeds)

    def p(self, value: float) -> float:
        """The two-sided p-value of a figure that should be 0: the largest level at which the
        interval over both leaves 0 out, to 3 digits; 1e-12 at least."""
        if value == 0 or self.error == 0:
            return float(value == 0)
        of_rows, of_seeds = points(self.row_df), points(self.seed_df)
        half = np.sqrt(self.rows * of_rows**2 + self.seeds * of_seeds**2)
        return float(np.exp(np.interp(abs(value), half, np.log(P_VALUES))))

    def factor(self, level: float = LEVEL) -> float:
        """Standard errors in half an interval of 1 - level."""
        if self.error == 0:
            return quantile(level, self.row_df)
        rows = self.rows * quantile(level, self.row_df) ** 2
        seeds = self.seeds * quantile(level, self.seed_df) ** 2
        return math.sqrt(rows + seeds) / self.error


@cache
def points(df: float) -> Floats:
    """The quantiles of Student's t at P_VALUES."""
    return np.array([quantile(float(p), df) for p in P_VALUES])


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % intervals. Bounds are NaN where rows or seeds are too few.

    over_rows: other rows, the same runs. over_seeds: the same rows, other seeds. over_both: other
    rows and other seeds; verdicts use this one.
    """

    value: float
    over_rows: Interval
    over_seeds: Interval
    over_both: Interval


def variance_of(table: Table, pooled: float | None = None) -> Variance | None:
    """The variance of a table's value; None: fewer than 3 rows or 2 seeds.

    pooled: the variance over the seeds that the sides of a study have in general, of what the
    table is (twice that of one run for a difference of two). None: the table's own alone.
    """
    rows, seeds = table.rows.shape
    if rows < MIN_ROWS or seeds < MIN_SEEDS:
        return None
    own = float(table.values.var(ddof=1))
    single = table.rows - table.rows.mean(axis=0)
    single = single - single.mean(axis=1, keepdims=True)
    noise = float((single**2).sum()) / ((rows - 1) * (seeds - 1))
    return Variance(
        rows=row_variance(table),
        seeds=(own if pooled is None else max(own, (own + pooled) / 2)) / seeds,
        mixed=noise / (rows * seeds),
        row_df=max(table.effective - 1, 1.0),
        seed_df=(seeds - 1) * (1 if pooled is None else 2),
        row_count=rows,
        seed_count=seeds,
    )


def row_variance(table: Table) -> float:
    """The variance of the mean over seeds that comes from the rows.

    Differences of hits and misses get half a row of +1 and half a row of -1 more: a few rows
    without any difference do not prove that no row differs.
    Source: Agresti & Min, "Effects and non-effects of paired identical observations", 2005,
        Statistics in Medicine 24:729-740.
    """
    means = table.rows.mean(axis=1)
    count, squares = len(means), float(((means - means.mean()) ** 2).sum())
    if table.hits and table.scale == "difference":
        return (squares + 1 + float(means.mean()) ** 2) / (count * (count + 1))
    return squares / (count * (count - 1))


def figure_of(table: Table, variance: Variance | None) -> Figure:
    """The value of a table, with its intervals."""
    value, rows = table.value, len(table.rows)
    unknown = Interval(value, math.nan, math.nan)
    over_rows = over_seeds = over_both = unknown
    if rows >= MIN_ROWS:
        factor = quantile(LEVEL, max(table.effective - 1, 1.0))
        over_rows = bounds(table, math.sqrt(row_variance(table)), factor)
    if variance is not None:
        factor = quantile(LEVEL, variance.seed_df)
        over_seeds = bounds(table, math.sqrt(variance.seeds), factor)
        over_both = bounds(table, variance.error, variance.factor())
    return Figure(value, over_rows, over_seeds, over_both)


def bounds(table: Table, error: float, factor: float) -> Interval:
    """An interval on the scale of the measure, so that it stays where the measure can be.

    Shares (scores from 0 to 1): Wilson's. Losses, never negative: on a logarithmic scale.
    Differences and all others: symmetric.
    """
    value = table.value
    if table.scale == "share":
        rows = table.effective if error == 0 else value * (1 - value) / error**2
        return wilson_of_share(value, rows or 1.0, factor)
    if table.scale == "positive" and value > 0:
        spread = math.exp(min(factor * error / value, 700.0))
        return Interval(value, value / spread, value * spread)
    return Interval(value, value - factor * error, value + factor * error)


def unsteady_sides(tables: Mapping[str, Table]) -> dict[str, float]:
    """The sides whose values differ from seed to seed far more than those of the others, with their
    standard deviations. Only of 4 sides or more: of fewer, it is open which is the exception.
    """
    spreads = {n: float(t.values.std(ddof=1)) for n, t in tables.items() if len(t.values) > 1}
    if len(spreads) < MIN_STEADY:
        return {}
    usual = float(np.median([*spreads.values()]))
    return {name: spread for name, spread in spreads.items() if spread > UNSTEADY * usual > 0}


def pooled_variance(tables: Sequence[Table]) -> float | None:
    """The variance of one run over the seeds, from sides with the same seeds.

    What a seed does to all sides alike is taken out, for it cancels in a paired difference.
    None: fewer than 3 sides.
    """
    if len(tables) < MIN_SIDES:
        return None
    values = np.stack([table.values for table in tables])
    rest = values - values.mean(axis=0)
    rest = rest - rest.mean(axis=1, keepdims=True)
    return float((rest**2).sum()) / ((values.shape[0] - 1) * (values.shape[1] - 1))
