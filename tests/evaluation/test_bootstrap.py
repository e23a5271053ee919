"""The paired bootstrap: against the jackknife, seeded, paired."""

import math

import numpy as np
import pytest

from lorica.evaluation.bootstrap import bootstrap
from lorica.evaluation.stats import ratios
from lorica.evaluation.tasks.f1 import F1


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


def test_intervals_of_macro_f1_contain_the_truth():
    """Two systems on the same 40 rows, right in 70 and in 80 of 100, again and again."""
    draw, combine = np.random.default_rng(0), F1().combine
    own = draw.choice(3, 200_000, p=[0.5, 0.3, 0.2])
    tables = [class_statistics(own, draw, share) for share in (0.7, 0.8)]
    first, second = (float(combine(table.sum(0))) for table in tables)
    contained = np.zeros(3)
    for start in range(0, 150 * 40, 40):
        intervals = bootstrap(combine, [table[start : start + 40] for table in tables])
        truths = (first, second, second - first)
        contained += [i.low <= t <= i.high for i, t in zip(intervals, truths, strict=True)]
    assert (contained / 150 >= 0.9).all() and (contained / 150 <= 0.99).all()


def class_statistics(own, draw, share):
    """The statistics of rows of classes `own`, of which a share is predicted right."""
    wrong = (own + draw.integers(1, 3, len(own))) % 3
    predicted = np.where(draw.random(len(own)) < share, own, wrong)
    statistics, row = np.zeros((len(own), 3, 3)), np.arange(len(own))
    statistics[row, 0, own] = own == predicted
    statistics[row, 1, own] = 1
    statistics[row, 2, predicted] = 1
    return statistics.reshape(len(own), 9)


def test_two_rows_have_no_interval():
    (interval,) = bootstrap(ratio, tables(rows=2)[:1])
    assert math.isnan(interval.low) and math.isnan(interval.high) and interval.value > 0
