"""Epochs, warm-up and evaluations follow from the rows and the goal."""

import pytest

from lorica.plan.choose.run_length import choose_length
from lorica.plan.choose.situation import Base, Rows, Situation

BASE = Base("base", 64, 1, [(64, 64)])


def length(train, validation=50, goal="quality"):
    rows = Rows("prompt", train + validation, train, validation, 1000)
    return {r.what: r.value for r in choose_length(Situation(rows, BASE, goal=goal))}


@pytest.mark.parametrize(
    ("train", "goal", "epochs", "warmup"),
    [
        (8_000, "quality", 3, 0.03),
        (8_000, "fast", 1, 0.03),
        (400, "quality", 3, 0.1),
        (80, "quality", 10, 0.1),  # 100 steps
        (4, "quality", 20, 0.1),  # no more than 20 epochs
        (60_000, "quality", 1, 0.03),
    ],
)
def test_epochs_and_warm_up(train, goal, epochs, warmup):
    result = length(train, goal=goal)
    assert (result["epochs"], result["warmup_ratio"]) == (epochs, warmup)


def test_ten_evaluations():
    assert length(8_000)["eval_steps"] == 300 and length(8_000)["early_stopping_patience"] == 3


def test_without_validation_rows_there_are_no_evaluations():
    assert set(length(8_000, validation=0)) == {"epochs", "warmup_ratio"}
