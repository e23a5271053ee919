"""A against A: how the runs are dealt out, without any training."""

import numpy as np
import pytest

from benchmarks.compare_aa import dealt, picked, resampled, shown, studies
from benchmarks.compare_rates import losses
from tests.compare.simulated_study import scores, side, study


@pytest.fixture(scope="module")
def result():
    values = losses(np.random.default_rng(0), 1, rows=60, seeds=24, seed=0.02)[0]
    return study([side("a", {seed: scores(row) for seed, row in enumerate(values)})])


def test_each_run_is_dealt_once(result):
    dealt_out = studies(result, 4)
    assert len(dealt_out) == 2
    values = [f.scores["loss"].value for s in dealt_out for one in s.sides for f in one.finals]
    assert values == [final.scores["loss"].value for final in result.sides[0].finals]
    assert [final.seed for final in dealt_out[1].sides[3].finals] == [0, 1, 2]


def test_equal_sides_are_seldom_shown_to_differ(result):
    assert sum(map(shown, studies(result, 2))) == 0
    assert resampled(result, samples=40) <= 4


def test_a_planted_difference_is_shown(result):
    finals = list(result.sides[0].finals[:3])
    better = [
        type(f)(f.seed, 1e-3, {"loss": scores(np.array(f.scores["loss"].rows) - 0.5)})
        for f in finals
    ]
    assert shown(dealt(result, [*finals, *better], 2)) == 1


def test_rows_are_drawn_again_with_their_weights():
    drawn = picked(scores([1.0, 2.0, 4.0], weights=[1, 1, 3]), np.array([2, 2, 0]))
    assert drawn.value == pytest.approx((4 * 3 * 2 + 1) / 7)
    assert drawn.weights == [3.0, 3.0, 1.0]
