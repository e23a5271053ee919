"""ALoRA: the update, its gates and its start."""

import copy

import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.methods.alora import Alora
from tests.laws.bases import Stack, move
from tests.methods.alora.driving import SHORT, Loop, X, dead_parts, loss_of, ranked


def test_it_starts_as_lora_does():
    alora = lorica.adapt(Stack(), Alora(r=3, r_max=5), seed=4)
    lora = attached(lorica.adapt(Stack(), Lora(r=3), seed=4)).adapters
    assert lora.keys() == ranked(alora).keys()
    for site, adapter in ranked(alora).items():
        assert torch.equal(adapter.a[:3], lora[site].a), site  # type: ignore[arg-type]
        assert adapter.scale == lora[site].scale == 2
        assert adapter.g.tolist() == [1, 1, 1, 0, 0]
        assert not adapter.b.any()
    assert not any(part.any() for part in dead_parts(alora))


def test_the_scale_stays_when_ranks_move():
    model = lorica.adapt(Stack(), Alora(r=2, alpha=6))
    (adapter, *_) = ranked(model).values()
    adapter.grow(2)
    assert adapter.scale == 3
    nn.init.ones_(adapter.b)
    _, b = adapter.factors()
    assert b.unique().tolist() == [3]


def test_the_first_step_moves_the_live_columns_of_b_alone():
    layer = nn.Linear(3, 2, bias=False)
    model = lorica.adapt(nn.Sequential(layer), Alora(r=2, r_max=3, alpha=6))
    (adapter,) = ranked(model).values()
    x, g = torch.tensor([[1.0, 1, 2], [0, 3, 1]]), torch.tensor([[1.0, -1], [2, 0.5]])
    (model(x) * g).sum().backward()
    assert adapter.a.grad is not None and adapter.b.grad is not None
    assert not adapter.a.grad.any()
    assert adapter.b.grad[:, :2].all()
    torch.testing.assert_close(adapter.b.grad, 3 * g.T @ (x @ adapter.a.T))
    assert not adapter.b.grad[:, 2].any()
    assert [n for n, _ in adapter.named_parameters()] == ["a", "b"], "gates are not trained"


def test_no_gradient_passes_a_closed_gate():
    model = move(lorica.adapt(Stack(), Alora(r=2)))
    assert all(part.any() for part in dead_parts(model)), "move() fills what is out of use"
    loss_of(model).backward()
    for adapter in ranked(model).values():
        assert adapter.a.grad is not None and adapter.b.grad is not None
        assert not adapter.a.grad[2:].any() and not adapter.b.grad[:, 2:].any()
        assert adapter.a.grad[:2].any() and adapter.b.grad[:, :2].any()


def test_a_gate_takes_its_rank_out():
    model = move(lorica.adapt(Stack(), Alora(r=3, r_max=3)))
    whole = copy.deepcopy(model)
    for adapter in ranked(model).values():
        adapter.g[1] = 0
    for adapter in ranked(whole).values():
        with torch.no_grad():
            adapter.b[:, 1] = 0
    assert torch.equal(model(X), whole(X))
    gated = model(X).detach()
    lorica.merge(model)
    torch.testing.assert_close(model(X), gated)


def test_pruned_ranks_stay_pruned_on_disk(tmp_path):
    loop = Loop(lorica.adapt(Stack(), Alora(r=2, **SHORT)), 15)
    loop.steps(15)
    lorica.save(loop.model, tmp_path / "adapter")
    fresh = Stack()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(fresh(X), loop.model(X))
    ranks = {site: int(adapter.g.sum()) for site, adapter in ranked(fresh).items()}
    assert ranks == loop.schedule.ranks()
    assert set(ranks.values()) != {2}, "ranks have moved in this run"
