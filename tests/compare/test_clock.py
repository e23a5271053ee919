"""The time that is left of a study, from what its parts so far took."""

import pytest

from lorica.compare.clock import Clock, Work


def test_what_is_left_follows_what_the_parts_took():
    """Starts and evaluations are not in what is expected, and are in what a part took."""
    work = Work(expected=100.0)
    assert work.left == 100.0
    work.note(20.0, 60.0)
    assert work.left == pytest.approx(240.0)
    work.skip(30.0)
    assert work.left == pytest.approx(150.0)
    work.note(50.0, 50.0)
    assert work.left == 0.0


def test_slow_scoring_does_not_make_training_slow():
    clock = Clock(now=lambda: 0.0)
    clock.training.expected, clock.scoring.expected = 100.0, 40.0
    clock.training.note(50.0, 50.0)
    assert clock.left == pytest.approx(90.0)
    clock.scoring.note(10.0, 40.0)
    assert clock.left == pytest.approx(50.0 + 120.0)


def test_a_budget_ends():
    seconds = iter([0.0, 4.0, 5.0])
    clock = Clock(budget=5.0, now=lambda: next(seconds))
    assert [clock.is_over, clock.is_over] == [False, True]
