"""AFLoRA: the update, the scores and the threshold."""

import math

import pytest
import torch

import lorica
from lorica import Driver
from lorica.methods.aflora import Aflora
from lorica.methods.aflora import schedule as freezing
from lorica.methods.aflora.schedule import Freezing, below_threshold
from tests.methods.aflora.driving import one, scaled


def test_the_start():
    model, adapter = one(600, 400, r=6)
    for matrix, fan_in in ((adapter.a, 600), (adapter.b, 6)):
        bound = math.sqrt(6 / fan_in)
        assert 0.95 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert adapter.d.tolist() == pytest.approx([0.1] * 6)
    assert adapter.v.tolist() == [0.0] * 400
    x = torch.randn(5, 600)
    assert torch.equal(model(x), model[0].forward(x))  # type: ignore[index]
    assert one(6, 4, d_initial=0.5)[1].d.tolist() == [0.5] * 4


def test_the_first_step_moves_v_alone():
    model, adapter = one(3, 2, r=2)
    x, g = torch.tensor([[1.0, 1, 2], [0, 3, 1]]), torch.tensor([[1.0, -1], [2, 0.5]])
    (model(x) * g).sum().backward()
    for key in ("a", "b", "d"):
        assert not getattr(adapter, key).grad.any(), key
    mixed = (x @ adapter.a.T) * 0.1 @ adapter.b.T
    torch.testing.assert_close(adapter.v.grad, (g * mixed).sum(0))
    assert adapter.v.grad is not None and adapter.v.grad.all()


def test_the_update_by_hand():
    model, adapter = one(2, 2, r=1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))  # type: ignore[index, operator]
        adapter.a.copy_(torch.tensor([[1.0, -1]]))
        adapter.b.copy_(torch.tensor([[2.0], [3]]))
        adapter.d.copy_(torch.tensor([0.5]))
        adapter.v.copy_(torch.tensor([10.0, 100]))
    x = torch.tensor([3.0, 1])  # A x = 2, d A x = 1, B = (2, 3), v = (10, 100)
    assert model(x).tolist() == [5 + 20, 13 + 300]
    lorica.merge(model)
    assert model[0].weight.tolist() == [[1 + 10, 2 - 10], [3 + 150, 4 - 150]]  # type: ignore[index]


def test_the_share_that_trains():
    model, _ = one(3, 2)
    schedule = Driver(model, total=900).schedule
    schedule = Aflora(tinit=100, tfinal=400).schedule(scaled(model), 900, 1)
    want = {1: 1, 100: 1, 150: 0.669922, 200: 0.421875, 300: 0.125, 400: 0.015625, 500: 0, 501: 0}
    for t, share in want.items():
        assert schedule.trained_fraction(t) == pytest.approx(share, abs=5e-7), t
    assert schedule.trained_fraction(900) == 0


def test_the_averages_by_hand():
    model, adapter = one(2, 1, r=1, deltaT=2, tinit=50, tfinal=10)
    schedule = Driver(model, total=100).schedule
    assert isinstance(schedule, Freezing)
    name = next(iter(schedule.matrices))
    for t, grad in enumerate([[1.0, -2.0], [-3.0, 2.0], [4.0, 0.0], [4.0, 0.0]], 1):
        adapter.a.grad = torch.tensor([grad])
        schedule.before_step(t)
        if t == 1:
            torch.testing.assert_close(schedule.averages(name)[0], torch.tensor([[0.5, 1.0]]))
            assert not schedule.averages(name)[1:].any()
        if t == 2:  # window mean 2 and 2
            want = torch.tensor([[[0.0, 0]], [[0.3, 0.3]], [[0.085, 0.085]]])
            torch.testing.assert_close(schedule.averages(name), want)
    level = [0.85 * 0.3 + 0.15 * 4, 0.85 * 0.3]
    spread = [0.95 * 0.085 + 0.05 * (4 - level[0]), 0.95 * 0.085 + 0.05 * level[1]]
    want = torch.tensor([[[0.0, 0]], [level], [spread]])
    torch.testing.assert_close(schedule.averages(name), want)
    assert level[0] * spread[0] == pytest.approx(0.855 * 0.238)


def test_the_size_of_a_gradient_counts_and_not_its_sign_or_the_weight():
    seen = []
    for sign, weight in ((1, 1.0), (-1, 1.0), (1, 7.0)):
        model, adapter = one(4, 3, r=2, deltaT=1, tinit=50, tfinal=10)
        schedule = Driver(model, total=100).schedule
        assert isinstance(schedule, Freezing)
        with torch.no_grad():
            adapter.a.mul_(weight)
        adapter.a.grad = sign * torch.arange(8.0).reshape(2, 4)
        schedule.before_step(1)
        seen.append(next(iter(schedule._averages.values())))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_the_mean_is_held_against_a_quantile():
    heavy, flat = torch.tensor([[0.0, 0, 0, 9]]), torch.ones(2, 2)
    scores = {"heavy": heavy, "flat": flat}  # sorted: 0 0 0 1 1 1 1 9; means 2.25 and 1
    assert below_threshold(scores, 1.0) == below_threshold(scores, 0.9) == []
    assert below_threshold(scores, 0.5) == below_threshold(scores, 0.125) == [], (
        "the 4th to 7th are 1, and 1 < 1 is false"
    )
    assert below_threshold(scores, 0.0) == ["heavy", "flat"], "much at once"
    assert below_threshold({"heavy": heavy / 10, "flat": flat}, 0.5) == ["heavy"]
    assert below_threshold({"flat": flat}, 0.0) == [], "a mean that is the maximum"
    assert below_threshold({}, 0.0) == []


def test_many_scores_are_sampled(monkeypatch):
    scores = {
        k: s * torch.rand(50, 40, generator=torch.Generator().manual_seed(1))
        for k, s in (("x", 0.1), ("y", 1.0), ("z", 3.0))
    }
    for share, want in ((0.9, []), (0.5, ["x"]), (0.25, ["x", "y"])):
        assert below_threshold(scores, share) == want
        monkeypatch.setattr(freezing, "MAX_SCORES", 600)
        sizes = []
        whole = torch.Tensor.kthvalue
        monkeypatch.setattr(
            torch.Tensor, "kthvalue", lambda s, k, w=whole, n=sizes: n.append(len(s)) or w(s, k)
        )
        assert below_threshold(scores, share) == want
        assert 500 < sizes[0] <= 600
        monkeypatch.undo()


def test_the_sample_meets_every_column(monkeypatch):
    monkeypatch.setattr(freezing, "MAX_SCORES", 500)  # of 2000: every fourth would be of one column
    comb = torch.tensor([5.0, 0, 0, 0]).repeat(500, 1)
    assert below_threshold({"comb": comb}, 0.5) == [], "the median is 0, and no 5"


@pytest.mark.parametrize("size, which", [(4.0, 0), (100.0, 1)])
def test_a_score_is_size_times_spread(size, which):
    model, adapter = one(2, 1, r=1, deltaT=1, tinit=0, tfinal=10)
    schedule = Driver(model, total=100).schedule
    assert isinstance(schedule, Freezing)
    for name, level, spread in zip(schedule.matrices, (size, 1.0), (0.1, 1.0), strict=True):
        schedule.averages(name)[1:] = torch.tensor([level, spread]).reshape(2, 1, 1)
    adapter.a.grad, adapter.b.grad = torch.full((1, 2), size), torch.ones(1, 1)
    schedule.before_step(90)  # of 0.095 size, twice, and of 0.95 the highest is the threshold
    assert [bool(step) for step in schedule.frozen_at.values()] == [which == 0, which == 1]
