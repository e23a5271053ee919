"""Rows in a line against each row by itself: values and gradients, with beginnings shared."""

import pytest
import torch
from torch import Tensor

from lorica.kernels.attention import attention_by_row

LENGTHS = [5, 3, 4, 2]
SHARED = [[], [(0, 4)], [(0, 4), (5, 7)], []]  # the third row goes on from the second's beginning


def alone(q: Tensor, k: Tensor, v: Tensor, shared: list[list[tuple[int, int]]]) -> Tensor:
    """By the definition: each row picked out of the line, and softmax written out."""
    rows_out, start = [], 0
    for length, begins in zip(LENGTHS, shared, strict=True):
        places = [p for a, b in begins for p in range(a, b)]
        places += range(start, start + length)
        start += length
        rows = (t[0][:, torch.tensor(places)] for t in (q, k, v))
        queries, keys, values = (t.repeat_interleave(4 // len(t), 0) for t in rows)
        later = torch.ones(len(places), len(places), dtype=torch.bool).triu(1)
        scores = (queries @ keys.mT * 0.3).masked_fill(later, -torch.inf)
        rows_out.append((scores.softmax(-1) @ values)[:, -length:])
    return torch.cat(rows_out, 1).unsqueeze(0)


@pytest.mark.parametrize("shared", [None, SHARED], ids=["apart", "shared"])
def test_it_is_each_row_by_itself(shared):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 14, heads, 6, generator=draw).double().transpose(1, 2) for heads in (4, 2, 2)
    )
    weights = torch.randn(1, 4, 14, 6, generator=draw).double()
    results = []
    for act in (
        lambda q, k, v: attention_by_row(q, k, v, LENGTHS, scale=0.3, shared=shared),
        lambda q, k, v: alone(q, k, v, shared or [[]] * 4),
    ):
        given = [t.detach().clone().requires_grad_() for t in (q, k, v)]
        y = act(*given)
        results.append([y, *torch.autograd.grad((y * weights).sum(), given)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
