"""95 % confidence intervals, of a metric of one system and of the difference of two systems.

Shares of rows (exact match, the accuracy of a classifier) get intervals that are valid for few
rows and at 0 % and 100 %, where the textbook interval has no width: Wilson's for one system,
Newcombe's for two on the same rows. Means over tokens (loss, token accuracy) are ratios of sums
over rows, and rows are independent, not tokens. So each row is left out in turn (the jackknife),
and Student's t replaces the normal distribution. A bootstrap of 5 rows covers 74 to 87 %, not 95 %.

Coverage by simulation (tests/evaluation/test_stats.py; 5, 10, 30 and 100 rows): 93 to 97 % for
losses and token accuracies of rows of unequal length; 88 to 92 % where a few rows are far worse
than all others (a log-normal with sigma 1), which no method can know from 5 rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054  # 97.5 % point of the normal distribution
T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)
"""97.5 % points of Student's t with 1 to 9 degrees of freedom."""
MIN_ROWS = 3
"""Fewest rows with an interval of a ratio."""

Floats = NDArray[np.float64]
Transform = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval. The bounds are NaN if the rows are too few."""

    value: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """+1 if the whole interval is above 0, -1 if below, 0 if it contains 0 or is unknown."""
        return (self.low > 0) - (self.high < 0)

    def as_dict(self) -> dict[str, float | None]:
        """Plain JSON; None for values that are not finite."""
        return {key: value if math.isfinite(value) else None for key, value in vars(self).items()}


def wilson(hits: int, n: int) -> Interval:
    """The share hits / n, with Wilson's score interval.

    n: rows, at least 1.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
        1927, JASA 22:209-212.
    """
    return wilson_of_share(hits / n, n, Z)


def newcombe(first: ArrayLike, second: ArrayLike) -> Interval:
    """The difference of two shares on the same rows, second - first.

    first, second: (rows,) bool, hit or miss of each row.
    Source: Newcombe, "Improved confidence intervals for the difference between binomial
        proportions based on paired data", 1998, Statistics in Medicine 17:2635-2650, method 10.
    """
    a, b = np.asarray(second, bool), np.asarray(first, bool)
    n = len(a)
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    of_a, of_b = wilson(both + only_a, n), wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    if cross > 0:  # continuity correction, which may not change the sign
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0
    down_a, up_a = of_a.value - of_a.low, of_a.high - of_a.value
    down_b, up_b = of_b.value - of_b.low, of_b.high - of_b.value
    down = math.sqrt(max(down_a**2 - 2 * phi * down_a * up_b + up_b**2, 0))
    up = math.sqrt(max(up_a**2 - 2 * phi * up_a * down_b + down_b**2, 0))
    value = (only_a - only_b) / n
    return Interval(value, max(value - down, -1.0), min(value + up, 1.0))


def student(df: float) -> float:
    """The 97.5 % point of Student's t.

    df: degrees of freedom, at least 1. Between whole numbers below 10 it is interpolated in 1/df.
    Source: Abramowitz & Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5. From 10
        degrees of freedom on, the error is below 2e-5.
    """
    if df < 10:
        below, above = int(df), int(df) + 1
        share = (1 / below - 1 / df) / (1 / below - 1 / above)
        return _whole(below) * (1 - share) + _whole(above) * share
    z = Z
    return z + sum(
        (
            (z**3 + z) / (4 * df),
            (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2),
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3),
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4),
        )
    )


def _whole(df: int) -> float:
    return T[df - 1] if df < 10 else student(df)


def capped_exp(values: Any) -> Any:
    """exp, limited to what a float can hold."""
    return np.exp(np.minimum(values, math.log(1e300)))


@dataclass(frozen=True)
class Ratios:
    """Ratios of sums over rows, of several systems on the same rows.

    values: (systems,). left_out: (systems, rows): without each row in turn.
    effective: the effective number of rows: 1 / sum of squared shares of weight.
    """

    values: Floats
    left_out: Floats
    effective: float

    def positive(self, system: int, transform: Transform | None = None) -> Interval:
        """The interval of a ratio that is never negative (a loss), on a logarithmic scale.

        transform: applied to value and bounds (exp for a perplexity).
        """
        f, value = transform or _identity, self.values[system]
        if not self._has_interval or value <= 0:
            bound = math.nan if not self._has_interval else f(value)
            return Interval(float(f(value)), float(bound), float(bound))
        spread = math.exp(min(self._t * self._error(_identity, system) / value, 700))
        return Interval(*(float(f(v)) for v in (value, value / spread, value * spread)))

    def share(self, system: int) -> Interval:
        """Wilson's interval for a share, or for a mean of scores from 0 to 1.

        Its count of rows is the number of independent rows with the same standard error.
        """
        p = float(self.values[system])
        if not self._has_interval:
            return Interval(p, math.nan, math.nan)
        error = self._error(_identity, system)
        rows = p * (1 - p) / error**2 if error > 0 else self.effective
        return wilson_of_share(p, rows, self._t)

    def mean(self, system: int) -> Interval:
        """The interval of a ratio that may have any sign."""
        return jackknife(float(self.values[system]), self.left_out[system])

    def difference(self, first: int, second: int, transform: Transform | None = None) -> Interval:
        """The interval of second - first, paired by row. transform: applied to both before."""
        f = transform or _identity
        value = float(f(self.values)[second] - f(self.values)[first])
        if not self._has_interval:
            return Interval(value, math.nan, math.nan)
        half = self._t * self._error(f, second, first)
        return Interval(value, value - half, value + half)

    def difference_of_exp(self, first: int, second: int) -> Interval:
        """The interval of exp(second) - exp(first), on the same side of 0 as the difference.

        Otherwise a few rows of huge perplexity would hide the difference. A bound beyond 0 is
        replaced by that of the difference, scaled by the lower bound of exp(first).
        """
        of_exp, plain = self.difference(first, second, capped_exp), self.difference(first, second)
        low, high = of_exp.low, of_exp.high
        scale = self.positive(first, capped_exp).low
        if plain.side < 0:
            high = high if high < 0 else scale * math.expm1(plain.high)
        elif plain.side > 0:
            low = low if low > 0 else scale * math.expm1(min(plain.low, 690.0))
        elif self._has_interval:
            low, high = min(low, 0.0), max(high, 0.0)
        return Interval(of_exp.value, low, high)

    def share_difference(self, first: int, second: int) -> Interval:
        """The interval of second - first of two shares.

        Where no row differs, its bounds are the largest share that so few rows can miss.
        """
        plain = self.difference(first, second)
        if plain.value == plain.low == plain.high == 0:
            bound = wilson_of_share(0.0, self.effective, self._t).high
            return Interval(0.0, -bound, bound)
        return Interval(plain.value, max(plain.low, -1.0), min(plain.high, 1.0))

    @property
    def _has_interval(self) -> bool:
        return self.left_out.shape[1] >= MIN_ROWS

    @property
    def _t(self) -> float:
        return student(max(self.effective - 1, 1))

    def _error(self, f: Transform, system: int, minus: int | None = None) -> float:
        """The jackknife's standard error of a system, or of its difference to `minus`."""
        whole, without = f(self.values), f(self.left_out)
        change = whole[system] - without[system]
        if minus is not None:
            change = change - (whole[minus] - without[minus])
        rows = len(change)
        return math.sqrt(float((change**2).sum()) * (rows - 1) / rows)


def ratios(sums: ArrayLike, weights: ArrayLike) -> Ratios:
    """sum(sums) / sum(weights), and the same without each row.

    sums: (rows,) or (systems, rows): the numerator of each row (its summed loss, its hits).
    weights: (rows,): the denominator of each row (its label tokens), the same for all systems;
        rows of weight 0 are left out.

    Source: Miller, "The jackknife - a review", 1974, Biometrika 61:1-15; degrees of freedom from
        the effective number of rows: Kish, "Survey Sampling", 1965, 11.7.
    """
    weight = np.asarray(weights, float)
    table = np.atleast_2d(np.asarray(sums, float))[:, weight > 0]
    weight = weight[weight > 0]
    total, mass = table.sum(axis=1, keepdims=True), weight.sum()
    with np.errstate(divide="ignore", invalid="ignore"):  # a single row leaves nothing
        left_out = (total - table) / (mass - weight)
    return Ratios(total[:, 0] / mass, left_out, float(mass**2 / (weight**2).sum()))


def jackknife(value: float, left_out: Floats) -> Interval:
    """The interval of any smooth metric. left_out: (rows,): the metric without each row."""
    rows = len(left_out)
    if rows < MIN_ROWS:
        return Interval(value, math.nan, math.nan)
    half = student(rows - 1) * math.sqrt(float(((value - left_out) ** 2).sum()) * (rows - 1) / rows)
    return Interval(value, value - half, value + half)


def wilson_of_share(p: float, rows: float, z: float) -> Interval:
    """Wilson's interval of a share.

    rows: of independent hits and misses with the same standard error; not always a whole number.
    z: standard errors in half an interval.
    """
    middle = (p + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(p * (1 - p) / rows + z * z / (4 * rows * rows))
    return Interval(p, 0.0 if p <= 0 else middle - half, 1.0 if p >= 1 else middle + half)


def _identity(values: Floats) -> Floats:
    return values
