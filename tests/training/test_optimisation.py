"""The schedule, the order of rows, and the optimizer's groups."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lorica.training.optim import load_optimizer_state, make_optimizer, optimizer_state
from lorica.training.plan import lr_factor, row_order


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule(kind):
    at = [lr_factor(t, total=110, warmup=10, kind=kind) for t in range(111)]
    assert at[0] == pytest.approx(1 / 11)
    assert all(b > a for a, b in pairwise(at[:11]))
    assert at[10] == 1
    middle = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind]
    assert at[60] == pytest.approx(middle)
    assert at[35] == pytest.approx(
        {"cosine": (1 + math.cos(math.pi / 4)) / 2, "linear": 0.75, "constant": 1.0}[kind]
    )
    assert at[110] == pytest.approx(1.0 if kind == "constant" else 0.0)


def test_every_row_once_a_pass_and_any_piece_is_the_same_stream():
    stream = row_order(7, seed=3, start=0, count=30)
    assert sorted(stream[:7]) == sorted(stream[7:14]) == list(range(7))
    assert stream[:7] != stream[7:14]
    assert row_order(7, seed=3, start=5, count=11) == stream[5:16]
    assert row_order(7, seed=4, start=0, count=30) != stream


def test_groups_by_rate_and_decay():
    tensors = {
        "x.a": nn.Parameter(torch.ones(2, 2)),
        "x.b": nn.Parameter(torch.ones(2, 2)),
        "x.m": nn.Parameter(torch.ones(2)),
    }
    rates = {"x.a": 0.1, "x.b": 0.4, "x.m": 0.4}
    optimizer = make_optimizer(tensors, rates, kind="adamw", decay=0.5)
    groups = {(g["peak"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert groups == {(0.1, 0.5): 1, (0.4, 0.5): 1, (0.4, 0.0): 1}


def test_optimizer_state_comes_back():
    torch.manual_seed(0)

    def make():
        tensors = {"a": nn.Parameter(torch.ones(3, 3)), "b": nn.Parameter(torch.ones(3))}
        return tensors, make_optimizer(tensors, {"a": 0.1, "b": 0.1}, kind="adamw", decay=0.1)

    def step(tensors, optimizer, seed):
        draw = torch.Generator().manual_seed(seed)
        for tensor in tensors.values():
            tensor.grad = torch.randn(tensor.shape, generator=draw)
        optimizer.step()

    old, first = make()
    step(old, first, 1)
    new, second = make()
    with torch.no_grad():
        for key in new:
            new[key].copy_(old[key])
    saved = {k: t.clone() for k, t in optimizer_state(first, old).items()}
    load_optimizer_state(second, new, saved, step=1, complete=True)
    step(old, first, 2)
    step(new, second, 2)
    assert all(torch.equal(old[k], new[k]) for k in old)
