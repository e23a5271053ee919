"""Intervals against published values, and against what they promise: to hold the truth."""

import math

import numpy as np
import pytest

from lorica.evaluation.stats import Interval, bootstrap, newcombe, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(hits, n, low, high):
    found = wilson(hits, n)
    assert found.value == hits / n
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_at_all_hits_mirrors_none():
    assert wilson(20, 20).low == pytest.approx(1 - wilson(0, 20).high)
    assert wilson(20, 20).high == 1


def rows_of(both, second_only, first_only, none):
    first = [True] * both + [False] * second_only + [True] * first_only + [False] * none
    second = [True] * both + [True] * second_only + [False] * first_only + [False] * none
    return first, second


def test_newcombe_is_antisymmetric_and_bounded():
    first, second = rows_of(36, 12, 2, 0)
    there, back = newcombe(first, second), newcombe(second, first)
    assert there.value == pytest.approx(0.2)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert 0 < there.low < 0.2 < there.high < 0.35


def test_newcombe_is_sure_of_nothing_from_two_rows():
    found = newcombe([False, False], [True, True])
    assert found.value == 1
    assert found.low < 0.3


def test_newcombe_holds_the_truth_in_95_of_100():
    """400 samples of 30 pairs with a true difference of 0.2."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        cell = generator.choice(4, 30, p=[0.4, 0.3, 0.1, 0.2])
        first, second = (cell == 0) | (cell == 2), (cell == 0) | (cell == 1)
        found = newcombe(first, second)
        held += found.low <= 0.2 <= found.high
    assert held / 400 > 0.92


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    generator = np.random.default_rng(1)
    values = generator.normal(3.0, 2.0, 2000)
    found = bootstrap(values, np.ones(2000)).interval(0)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_pairing_sees_what_two_intervals_do_not():
    """Rows differ far more among each other than the systems do on each row."""
    generator = np.random.default_rng(2)
    base = generator.uniform(0, 100, 200)
    draws = bootstrap([base, base - generator.uniform(0.1, 0.3, 200)], np.full(200, 10.0))
    assert draws.interval(0).low < draws.interval(1).value < draws.interval(0).high
    assert draws.difference(0, 1).side == -1


def test_bootstrap_weighs_rows_by_tokens_and_follows_the_seed():
    sums, weights = [10.0, 1.0, 3.0], [10, 1, 1]
    one, again, other = (bootstrap(sums, weights, seed=s) for s in (0, 0, 1))
    assert one.interval(0).value == pytest.approx(14 / 12)
    assert np.array_equal(one.draws, again.draws)
    assert not np.array_equal(one.draws, other.draws)


def test_chunks_do_not_change_the_draws(monkeypatch):
    sums, weights = np.arange(50.0), np.ones(50)
    whole = bootstrap(sums, weights).draws
    monkeypatch.setattr("lorica.evaluation.stats.CHUNK", 500)
    assert np.array_equal(bootstrap(sums, weights).draws, whole)


def test_perplexity_is_transformed_inside_the_bootstrap():
    draws = bootstrap([[2.0, 3.0, 4.0], [1.0, 2.0, 3.0]], [1, 1, 1])
    assert draws.interval(0, np.exp).value == pytest.approx(math.exp(3))
    assert draws.difference(0, 1, np.exp).value == pytest.approx(math.exp(2) - math.exp(3))


def test_one_row_has_no_interval():
    found = bootstrap([2.0], [4]).interval(0)
    assert found.value == 0.5
    assert found.side == 0
    assert found.as_dict() == {"value": 0.5, "low": None, "high": None}


def test_the_side_of_an_interval():
    assert Interval(0.2, 0.1, 0.3).side == 1
    assert Interval(-0.2, -0.3, -0.1).side == -1
    assert Interval(0.2, -0.1, 0.3).side == 0
