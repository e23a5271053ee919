"""Student's t distribution at any degrees of freedom, and Holm's correction, with numpy alone."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

LARGEST = 1e9
"""Quantiles are searched below this."""


def two_sided_p(t: float, df: float) -> float:
    """The probability that |T| >= |t|.

    df: degrees of freedom, at least 1.
    Source: Abramowitz & Stegun, "Handbook of Mathematical Functions", 1964, 26.7.1 and 26.5.27.
    """
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


@cache
def quantile(p: float, df: float) -> float:
    """The t with two_sided_p(t, df) = p; 1.96 for p = 0.05 and many degrees of freedom.

    From 100 degrees of freedom on by an expansion, with errors below 1e-5.
    Source: Abramowitz & Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5.
    """
    if df < 100:
        return solve(lambda t: two_sided_p(t, df), p)
    z = quantile_of_normal(p)
    first = (z**3 + z) / (4 * df)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)


@cache
def quantile_of_normal(p: float) -> float:
    """The z that the absolute value of a normal variable exceeds with probability p."""
    return solve(lambda z: math.erfc(z / math.sqrt(2)), p)


def solve(falling: Callable[[float], float], target: float) -> float:
    """Where a falling function of a positive number comes down to `target`."""
    low, high = 0.0, 1.0
    while falling(high) > target and high < LARGEST:
        low, high = high, 4 * high
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return high


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number: of those below alpha, all are real with probability
    1 - alpha.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979, Scandinavian
        Journal of Statistics 6:65-70.
    """
    order = np.argsort(p, kind="stable")
    corrected, largest = [1.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(p) - place)))
        corrected[index] = largest
    return corrected


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by the continued fraction that converges faster."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    factor = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return factor * _fraction(a, b, x) / a
    return 1 - factor * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz' method for the continued fraction of the incomplete beta function."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return value
