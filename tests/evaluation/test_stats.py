"""Intervals against published values, and their coverage in simulations."""

import math

import numpy as np
import pytest

from lorica.evaluation.stats import Interval, jackknife, newcombe, ratios, student, wilson


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
    interval = wilson(hits, n)
    assert interval.value == hits / n
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_at_all_hits_mirrors_none():
    assert wilson(20, 20).low == pytest.approx(1 - wilson(0, 20).high)
    assert wilson(20, 20).high == 1


def rows_of(both, second_only, first_only, neither):
    first = [True] * both + [False] * second_only + [True] * first_only + [False] * neither
    second = [True] * both + [True] * second_only + [False] * first_only + [False] * neither
    return first, second


def test_newcombe_is_antisymmetric_and_bounded():
    first, second = rows_of(36, 12, 2, 0)
    forward, back = newcombe(first, second), newcombe(second, first)
    assert forward.value == pytest.approx(0.2)
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low))
    assert 0 < forward.low < 0.2 < forward.high < 0.35


def test_newcombe_is_wide_for_two_rows():
    interval = newcombe([False, False], [True, True])
    assert interval.value == 1
    assert interval.low < 0.3


def test_newcombe_covers_the_true_difference_in_95_of_100():
    """400 samples of 30 pairs with a true difference of 0.2."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        cell = generator.choice(4, 30, p=[0.4, 0.3, 0.1, 0.2])
        first, second = (cell == 0) | (cell == 2), (cell == 0) | (cell == 1)
        interval = newcombe(first, second)
        held += interval.low <= 0.2 <= interval.high
    assert held / 400 > 0.92


@pytest.mark.parametrize(
    ("df", "value"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (4, 2.7764),
        (9, 2.2622),
        (10, 2.2281),
        (15, 2.1314),
        (30, 2.0423),
        (120, 1.9799),
        (10**6, 1.9600),
    ],
)
def test_students_t_has_the_published_points(df, value):
    assert student(df) == pytest.approx(value, abs=6e-5)


def test_students_t_falls_with_the_degrees_of_freedom():
    points = [student(df) for df in np.linspace(1, 12, 100)]
    assert points == sorted(points, reverse=True)


def test_a_mean_has_students_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 20)
    interval = ratios([np.zeros(20), values], np.ones(20)).difference(0, 1)
    half = 2.0930 * values.std(ddof=1) / math.sqrt(20)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=1e-4
    )


N = (5, 10, 30, 100)
# The least share of 1,000 samples whose interval must contain the true value, for N rows.
LOSSES = {
    "normal": (lambda g, n: (g.normal(3, 1, n), np.ones(n), 3.0), (0.94, 0.94, 0.94, 0.94)),
    "uniform": (lambda g, n: (g.uniform(0, 1, n), np.ones(n), 0.5), (0.92, 0.93, 0.94, 0.94)),
    "exponential": (lambda g, n: (g.exponential(1, n), np.ones(n), 1.0), (0.91, 0.91, 0.92, 0.93)),
    "log-normal": (
        lambda g, n: (np.exp(g.normal(0, 1, n)), np.ones(n), math.exp(0.5)),
        (0.87, 0.87, 0.88, 0.90),
    ),
    "unequal rows": (lambda g, n: rows_with(g, g.integers(3, 40, n)), (0.93, 0.92, 0.93, 0.93)),
    "very unequal": (
        lambda g, n: rows_with(g, np.exp(g.normal(3, 1, n)).astype(int) + 1),
        (0.94, 0.92, 0.92, 0.93),
    ),
}


def rows_with(generator, lengths):
    losses = generator.gamma(4, 0.5, len(lengths))
    return losses * lengths, lengths, 2.0


def coverage(draw, interval, n):
    generator, held = np.random.default_rng(n), 0
    for _ in range(1000):
        sums, weights, truth = draw(generator, n)
        bounds = interval(sums, weights)
        held += bounds.low <= truth <= bounds.high
    return held / 1000


@pytest.mark.parametrize("name", LOSSES)
def test_intervals_of_a_loss_have_the_promised_coverage(name):
    draw, least = LOSSES[name]
    for n, wanted in zip(N, least, strict=True):
        assert coverage(draw, lambda s, w: ratios(s, w).positive(0), n) >= wanted


@pytest.mark.parametrize("truth", [0.5, 2 / 3, 40 / 41])
def test_intervals_of_token_accuracy_have_the_promised_coverage(truth):
    """Rows differ, so that tokens of one row are not independent."""

    def draw(generator, n):
        lengths = generator.integers(3, 40, n)
        chances = generator.beta(9 * truth / (1 - truth) ** 0.5, 9 * (1 - truth) ** 0.5, n)
        return generator.binomial(lengths, chances), lengths, truth

    for n in N:
        assert coverage(draw, lambda s, w: ratios(s, w).share(0), n) >= 0.93


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_intervals_of_a_difference_have_the_promised_coverage(spread):
    """Two systems on the same rows, whose difference is skewed."""

    def draw(generator, n):
        lengths, base = generator.integers(3, 40, n), generator.gamma(4, 0.5, n)
        moved = generator.gamma(2, spread, n) - 2.5 * spread
        return [base * lengths, (base + moved) * lengths], lengths, -0.5 * spread

    for n, wanted in zip(N, (0.90, 0.90, 0.91, 0.93), strict=True):
        assert coverage(draw, lambda s, w: ratios(s, w).difference(0, 1), n) >= wanted


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_intervals_of_a_difference_of_perplexities_have_the_promised_coverage(spread):
    def draw(generator, n):
        lengths, base = generator.integers(3, 40, n), generator.gamma(4, 0.25, n)
        moved = generator.gamma(2, spread, n) - 2.5 * spread
        truth = math.exp(1 - 0.5 * spread) - math.exp(1)
        return [base * lengths, (base + moved) * lengths], lengths, truth

    for n in N:
        assert coverage(draw, lambda s, w: ratios(s, w).difference_of_exp(0, 1), n) >= 0.93


def test_pairing_by_row_shows_a_difference_that_two_intervals_do_not():
    """Rows differ far more among each other than the systems do on each row."""
    generator = np.random.default_rng(2)
    base = generator.uniform(0, 100, 200)
    both = ratios([base, base - generator.uniform(0.1, 0.3, 200)], np.full(200, 10.0))
    assert both.positive(0).low < both.positive(1).value < both.positive(0).high
    assert both.difference(0, 1).side == -1


def test_rows_are_weighted_by_tokens_and_rows_without_are_ignored():
    weighted = ratios([10.0, 1.0, 3.0], [10, 1, 1])
    assert weighted.positive(0).value == pytest.approx(14 / 12)
    assert ratios([10.0, 1.0, 0.0, 3.0], [10, 1, 0, 1]).positive(0) == weighted.positive(0)


def test_a_perplexity_has_the_bounds_of_its_loss():
    both = ratios([[2.0, 3.0, 4.0], [1.0, 2.0, 2.5]], [1, 1, 1])
    loss, perplexity = both.positive(0), both.positive(0, np.exp)
    for name in ("value", "low", "high"):
        assert getattr(perplexity, name) == pytest.approx(math.exp(getattr(loss, name)))
    interval = both.difference(0, 1, np.exp)
    assert interval.value == pytest.approx(math.exp(5.5 / 3) - math.exp(3))


@pytest.mark.parametrize("rows", [1, 2])
def test_one_or_two_rows_have_no_interval(rows):
    both = ratios(np.ones((2, rows)), np.full(rows, 2))
    for interval in (
        both.positive(0),
        both.share(0),
        both.difference(0, 1),
        both.share_difference(0, 1),
        jackknife(0.5, np.ones(rows)),
    ):
        assert interval.side == 0
        assert interval.as_dict()["low"] is interval.as_dict()["high"] is None
    assert both.positive(0).value == 0.5


def test_a_share_of_100_percent_still_has_an_interval():
    """All tokens right in five rows: the sixth may be wrong."""
    both = ratios([[4.0] * 5, [4.0] * 5], [4] * 5)
    assert both.share(0).value == both.share(0).high == 1
    assert 0.3 < both.share(0).low < 0.7
    difference = both.share_difference(0, 1)
    assert difference.low < -0.3
    assert difference.high > 0.3


def test_the_side_of_an_interval():
    assert Interval(0.2, 0.1, 0.3).side == 1
    assert Interval(-0.2, -0.3, -0.1).side == -1
    assert Interval(0.2, -0.1, 0.3).side == 0
