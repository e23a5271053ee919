"""The paired bootstrap: against the jackknife, seeded, paired."""

import math

import numpy as np
import pytest

from lorica.evaluation.bootstrap import bootstrap
from lorica.evaluation.stats import ratios


def ratio(totals):
    return totals[..., 0] / totals[..., 1]


def tables(rows=200, gain=0.0, seed=0):
    draw = np.random.default_rng(seed)
    weights = draw.integers(5, 20, rows).astype(float)
    first = draw.normal(3, 1, rows) * weights
    return [np.stack([sums, weights], 1) for sums in (first, first + gain * weights)]


def test_intervals_agree_with_the_jackknife():
    first, second = tables(gain=0.5)
    noisy = second + np.stack([np.random.default_rng(1).normal(0, 5, 200), np.zeros(200)], 1)
    of_first, _, difference = bootstrap(ratio, [first, noisy])
    other = ratios([first[:, 0], noisy[:, 0]], first[:, 1])
    expected = other.difference(0, 1)
    assert difference.value == pytest.approx(expected.value)
    width = expected.high - expected.low
    assert difference.low == pytest.approx(expected.low, abs=0.15 * width)
    assert difference.high == pytest.approx(expected.high, abs=0.15 * width)
    assert of_first.value == pytest.approx(ratio(first.sum(0)))


def test_rows_are_paired_and_draws_follow_from_the_seed():
    """A gain that is equal in all rows is certain, however far the rows are apart."""
    intervals = bootstrap(ratio, tables(gain=0.25))
    assert intervals[2].low == pytest.approx(0.25) and intervals[2].high == pytest.approx(0.25)
    assert intervals[0].high - intervals[0].low > 0.1
    assert bootstrap(ratio, tables(gain=0.25)) == intervals
    assert bootstrap(ratio, tables(gain=0.25), seed=1)[0].low != intervals[0].low


def test_two_rows_have_no_interval():
    (interval,) = bootstrap(ratio, tables(rows=2)[:1])
    assert math.isnan(interval.low) and math.isnan(interval.high) and interval.value > 0
