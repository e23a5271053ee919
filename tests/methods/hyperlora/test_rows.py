"""Which tokens have which condition, in both layouts, and rows that do not fit."""

import pytest
import torch

from lorica.errors import DataError
from lorica.methods.hyperlora.rows import Rows

WHICH, LENGTHS = (2, 0, 1, 2), (3, 1, 5, 2)
APART, END_TO_END = Rows(WHICH), Rows(WHICH, LENGTHS)


@pytest.mark.parametrize("shape, tokens", [((4, 5), 1), ((4, 7, 5), 7), ((4, 2, 3, 5), 6)], ids=str)
def test_rows_that_are_apart(shape, tokens):
    want = [(i * tokens, (i + 1) * tokens, which) for i, which in enumerate(WHICH)]
    assert APART.spans(torch.zeros(shape)) == want


def test_rows_that_lie_end_to_end():
    assert END_TO_END.spans(torch.zeros(1, 11, 5)) == [(0, 3, 2), (3, 4, 0), (4, 9, 1), (9, 11, 2)]


def test_neighbours_with_one_condition_are_taken_together():
    assert Rows((1, 1, 0, 0, 0)).spans(torch.zeros(5, 2, 3)) == [(0, 4, 1), (4, 10, 0)]


@pytest.mark.parametrize(
    "rows, shape, facts",
    [
        (APART, (3, 7, 5), "3 rows, and conditions are set for 4"),
        (END_TO_END, (1, 10, 5), "10 tokens, and conditions are set for 11"),
        (END_TO_END, (4, 7, 5), "28 tokens, and conditions are set for 11"),
    ],
    ids=str,
)
def test_other_rows_are_refused(rows, shape, facts):
    with pytest.raises(DataError, match=facts) as error:
        rows.spans(torch.zeros(shape))
    assert error.value.fix


def test_as_many_conditions_as_rows():
    with pytest.raises(DataError, match="4 conditions are set for 2 rows"):
        Rows(WHICH, (3, 4))
