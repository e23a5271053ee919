"""The order of rows without torch is that of training."""

import pytest

from lorica.data.mixture import Mixture
from lorica.plan.row_order import row_order
from lorica.training import plan as training


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
@pytest.mark.parametrize(("rows", "count"), [(1, 3), (2, 5), (24, 60), (3_000, 100), (70_000, 9)])
def test_the_rows_are_those_of_training(rows, count, seed):
    assert row_order(rows, seed, count) == training.row_order(rows, seed, 0, count)


@pytest.mark.parametrize("parts", [((0, 40, 10), (40, 50, 25)), ((0, 1, 3), (1, 1, 0), (1, 9, 7))])
@pytest.mark.parametrize("count", [1, 9, 200])
def test_the_rows_of_a_mixture_are_those_of_training(parts, count):
    mixture, rows = Mixture(parts), parts[-1][1]
    assert row_order(rows, 5, count, mixture) == training.row_order(rows, 5, 0, count, mixture)
