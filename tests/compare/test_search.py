"""The rate search: what stops, what goes on, and what is tried beyond an edge."""

import math
from collections.abc import Callable

import pytest

from lorica.compare.search import Choice, Todo, advance, rungs_of

GRID = [0.1, 0.3, 1.0]


def search(
    grid: list[float], rungs: list[int], loss_of: Callable[[float, int], float | None]
) -> tuple[Choice, list[Todo]]:
    """Run a search to its end on a known function. Returns: the choice, and what was trained."""
    losses: dict[tuple[float, int], float | None] = {}
    todos = []
    while isinstance(answer := advance(grid, rungs, losses), Todo):
        todos.append(answer)
        assert len(todos) < 30
        for rate in answer.rates:
            assert (rate, answer.steps) not in losses
            losses[rate, answer.steps] = loss_of(rate, answer.steps)
    return answer, todos


def valley(best: float) -> Callable[[float, int], float]:
    return lambda rate, steps: abs(math.log(rate / best)) + 10 / steps


def test_each_rung_is_half_of_the_next():
    assert rungs_of(200, 3) == [50, 100, 200]
    assert rungs_of(3, 4) == [1, 3]
    assert rungs_of(7, 1) == [7]


def test_losing_rates_stop_and_the_best_goes_to_the_end():
    choice, todos = search(GRID, [50, 100], valley(0.28))
    assert choice == Choice(0.3)
    assert todos == [Todo(0, 50, (0.1, 0.3, 1.0)), Todo(1, 100, (0.3, 0.1))]


@pytest.mark.parametrize(("best", "rate"), ((0.011, 0.011), (9.0, 11.0), (0.028, 0.033)))
def test_the_grid_is_extended_where_its_edge_is_best(best: float, rate: float):
    choice, todos = search(GRID, [50, 100], valley(best))
    assert choice.rate == rate
    assert "beyond the grid" in choice.notices[0] or "edge" in choice.notices[0]
    assert 3 <= len(todos) <= 6


def test_the_grid_is_extended_twice_at_most_and_the_edge_is_named():
    choice, todos = search(GRID, [100], valley(1000.0))
    assert choice.rate == 11.0 and len(todos) == 3
    assert "a better one may lie beyond" in choice.notices[0]


def test_a_rate_beyond_the_edge_stops_at_the_rung_where_it_is_worse():
    choice, todos = search(GRID, [50, 100], valley(1.1))
    assert choice == Choice(1.0)
    assert todos[-1] == Todo(0, 50, (3.3,))


def test_a_rate_that_diverges_is_never_chosen():
    choice, todos = search(GRID, [50, 100], lambda r, s: None if r > 0.2 else valley(1.0)(r, s))
    assert choice.rate == 0.1
    assert Todo(1, 100, (0.1,)) in todos


def test_lower_rates_are_tried_where_all_diverge():
    choice, todos = search(GRID, [50, 100], lambda r, s: None if r > 0.05 else 1.0)
    assert choice.rate == 0.033
    none, todos = search(GRID, [50, 100], lambda r, s: None)
    assert none.rate is None and "diverged" in none.notices[0] and len(todos) == 3


def test_a_single_rate_needs_no_run():
    assert advance([0.1], [50, 100], {}) == Choice(0.1)


def test_of_equal_rates_the_lower_is_chosen():
    assert search(GRID, [100], lambda r, s: 1.0)[0].rate == 0.1
