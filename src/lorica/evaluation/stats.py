"""How sure a figure is: 95 % intervals, for one system and for the difference of two.

Shares of rows (exact match, the accuracy of a classifier) get intervals that hold for few rows
and at 0 % and 100 %, where the textbook interval has no width: Wilson's for one system,
Newcombe's for two on the same rows. Means over tokens (loss, token accuracy) are sums over rows
divided by sums over rows; rows are drawn again with replacement, both systems with the same
draws, because tokens of one row are not independent and rows are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054  # 97.5 % point of the normal distribution
RESAMPLES = 2000
CHUNK = 4_000_000  # row numbers drawn at a time: 32 MB

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval. Bounds are NaN where rows are too few to know one."""

    value: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """+1 if the whole interval lies above 0, -1 if below, 0 if 0 is in it or no one knows."""
        return (self.low > 0) - (self.high < 0)

    def as_dict(self) -> dict[str, float | None]:
        """Plain JSON: what is not finite is None."""
        return {key: value if math.isfinite(value) else None for key, value in vars(self).items()}


def wilson(hits: int, n: int) -> Interval:
    """The share hits / n, with Wilson's score interval.

    n: rows, at least 1.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
        1927, JASA 22:209-212.
    """
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else middle - half
    return Interval(p, low, 1.0 if hits == n else middle + half)


def newcombe(first: ArrayLike, second: ArrayLike) -> Interval:
    """The difference of two shares on the same rows, second - first.

    first, second: (rows,) bool, hit or miss of each row.
    Source: Newcombe, "Improved confidence intervals for the difference between binomial
        proportions based on paired data", 1998, Statistics in Medicine 17:2635-2650, method 10.
    """
    a, b = np.asarray(second, bool), np.asarray(first, bool)
    n = len(a)
    both, none = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    of_a, of_b = wilson(both + only_a, n), wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + none) * (both + only_b) * (only_a + none)
    cross = both * none - only_a * only_b
    if cross > 0:  # continuity correction, which may not change the sign
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0
    down_a, up_a = of_a.value - of_a.low, of_a.high - of_a.value
    down_b, up_b = of_b.value - of_b.low, of_b.high - of_b.value
    down = math.sqrt(max(down_a**2 - 2 * phi * down_a * up_b + up_b**2, 0))
    up = math.sqrt(max(up_a**2 - 2 * phi * up_a * down_b + down_b**2, 0))
    value = (only_a - only_b) / n
    return Interval(value, max(value - down, -1.0), min(value + up, 1.0))


@dataclass(frozen=True)
class Draws:
    """Ratios of sums over resampled rows, for several systems under the same draws.

    values: (systems,) on the rows themselves.
    draws: (systems, resamples).
    """

    values: NDArray[np.float64]
    draws: NDArray[np.float64]
    rows: int

    def interval(self, system: int, transform: Transform | None = None) -> Interval:
        """System `system`; `transform` (exp for a perplexity) is applied to value and draws."""
        f = transform or _same
        return self._interval(f(self.values)[system], f(self.draws)[system])

    def difference(self, first: int, second: int, transform: Transform | None = None) -> Interval:
        """second - first, row for row on the same draws."""
        f = transform or _same
        values, draws = f(self.values), f(self.draws)
        return self._interval(values[second] - values[first], draws[second] - draws[first])

    def _interval(self, value: float, draws: NDArray[np.float64]) -> Interval:
        if self.rows < 2:  # one row drawn again is the same row: that is no certainty
            return Interval(float(value), math.nan, math.nan)
        low, high = np.quantile(draws, (0.025, 0.975))
        return Interval(float(value), float(low), float(high))


def bootstrap(
    sums: ArrayLike, weights: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Draws:
    """Draw rows with replacement and take sum(sums) / sum(weights) each time.

    sums: (rows,) or (systems, rows): what each row adds (its summed loss, its correct tokens).
    weights: (rows,): what each row counts for (its label tokens), the same for all systems.
    seed: the draws follow from it; two calls with the same seed and rows draw the same rows.

    Percentile intervals. Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
    ch. 13; paired between systems: Koehn, "Statistical Significance Tests for Machine
    Translation Evaluation", 2004, EMNLP.
    """
    table = np.vstack([np.atleast_2d(np.asarray(sums, float)), np.asarray(weights, float)])
    rows = table.shape[1]
    generator = np.random.default_rng(seed)
    totals = np.empty((len(table), resamples))
    step = max(1, CHUNK // max(rows, 1))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = generator.integers(rows, size=(stop - start, rows))
        for total, column in zip(totals, table, strict=True):
            total[start:stop] = column[drawn].sum(axis=1)
    whole = table.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of rows without any label
        return Draws(whole[:-1] / whole[-1], totals[:-1] / totals[-1], rows)


def _same(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values
