"""A branch for each row: both layouts against the loop over rows, and rows that do not fit."""

import pytest
import torch

from lorica.core.rows import Rows, branch, row_by_row
from lorica.errors import DataError

A = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
B = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
WHICH = [2, 0, 1, 2]
LENGTHS = [3, 1, 5, 2]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shape", [(4, 5), (4, 7, 5), (4, 2, 3, 5), (4, 1, 5)], ids=str)
def test_rows_that_are_apart(shape):
    x, rows = drawn(*shape), Rows.of(WHICH, None)
    got = branch(x, A, B, rows)
    assert got.shape == (*shape[:-1], 4)
    torch.testing.assert_close(got, row_by_row(x, A, B, rows))
    torch.testing.assert_close(got[3], x[3] @ A[2].T @ B[2].T)


def test_rows_that_lie_end_to_end():
    x, rows = drawn(1, sum(LENGTHS), 5), Rows.of(WHICH, LENGTHS)
    got = branch(x, A, B, rows)
    assert got.shape == (1, 11, 4)
    torch.testing.assert_close(got, row_by_row(x, A, B, rows))
    alone = [row @ A[i].T @ B[i].T for row, i in zip(x[0].split(LENGTHS), WHICH, strict=True)]
    torch.testing.assert_close(got[0], torch.cat(alone))


def test_what_is_not_a_rows_own_does_not_reach_it():
    """Also no infinity: a condition whose numbers overflow harms the rows that have it alone."""
    x = drawn(4, 7, 5)
    wild = torch.cat([A[:2], torch.full_like(A[2:], 1e30)])
    got = branch(x, wild, B, Rows.of(WHICH, None))
    assert torch.equal(got[1:3], branch(x, A, B, Rows.of(WHICH, None))[1:3])


def test_one_condition_is_for_all_rows():
    x = drawn(6, 5)
    torch.testing.assert_close(branch(x, A[1:2], B[1:2], None), x @ A[1].T @ B[1].T)
    torch.testing.assert_close(row_by_row(x, A[1:2], B[1:2], None), x @ A[1].T @ B[1].T)


def test_the_gradients_are_those_of_the_loop():
    for rows, shape in ((Rows.of(WHICH, None), (4, 7, 5)), (Rows.of(WHICH, LENGTHS), (1, 11, 5))):
        grads = []
        for one in (branch, row_by_row):
            x, a, b = (t.clone().requires_grad_() for t in (drawn(*shape), A, B))
            one(x, a, b, rows).sin().sum().backward()
            grads.append((x.grad, a.grad, b.grad))
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


def test_bfloat16_stays_bfloat16():
    for rows, shape in ((Rows.of(WHICH, None), (4, 7, 5)), (Rows.of(WHICH, LENGTHS), (1, 11, 5))):
        x, a, b = (t.bfloat16() for t in (drawn(*shape), A, B))
        assert branch(x, a, b, rows).dtype == torch.bfloat16


@pytest.mark.parametrize("rows, shape, facts", [
    (Rows.of(WHICH, None), (3, 7, 5), "3 rows, and conditions are set for 4"),
    (Rows.of(WHICH, LENGTHS), (1, 10, 5), "10 tokens, and conditions are set for 11"),
    (Rows.of(WHICH, LENGTHS), (4, 7, 5), "28 tokens, and conditions are set for 11"),
], ids=str)  # fmt: skip
def test_other_rows_are_refused(rows, shape, facts):
    with pytest.raises(DataError, match=facts) as error:
        branch(drawn(*shape), A, B, rows)
    assert error.value.fix


def test_as_many_conditions_as_rows():
    with pytest.raises(DataError, match="4 conditions are set for 2 rows"):
        Rows.of(WHICH, [3, 4])
