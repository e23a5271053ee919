"""B-LoRA: its start, what the gates do, and the penalty."""

import pytest
import torch
from torch import nn

import lorica
from lorica.core.drive import Driver
from lorica.kernels import bits
from lorica.methods.blora import Blora
from tests.laws.bases import Stack
from tests.methods.blora.driving import Run, X, adapters, first, fresh, put


def test_how_it_starts():
    model = fresh(base=nn.Sequential(nn.Linear(400, 300)), r=64)
    adapter = first(model)
    assert adapter.a.std().item() == pytest.approx(0.02, rel=0.02)
    assert adapter.b.std().item() == pytest.approx(0.02, rel=0.02)
    assert 0.75 < adapter.e.std().item() < 1.25
    assert adapter.gates.unique().tolist() == [6]
    assert adapter.gates.shape == (3 * 3 + 63,)
    largest = [t.abs().max().item() / bits.EDGE for t in (adapter.a, adapter.b, adapter.e)]
    assert adapter.log_steps.exp().tolist() == pytest.approx(largest)


@pytest.mark.parametrize("prune_rank", [True, False])
def test_it_starts_as_the_base_when_told_so(prune_rank):
    x, base = X, Stack()(X)
    assert (fresh(prune_rank=prune_rank)(x) - base).abs().max() > 1e-3
    model = fresh(prune_rank=prune_rank, zero_start=True)
    assert torch.equal(model(x), base)
    model(x).sum().backward()
    adapter = first(model)
    assert (adapter.e if prune_rank else adapter.b).grad.abs().max() > 0
    assert all(a.log_steps.isfinite().all() for a in adapters(model)), "no range of zeros"


def test_scale():
    assert first(fresh()).scale == 2
    assert first(fresh(alpha=1)).scale == 0.25


def test_rates_of_learning():
    method = Blora(gate_lr=0.03, scale_lr=0.2)
    rates = {key: method.learning_rate(key, 1e-4) for key in ("a", "b", "e", "gates", "log_steps")}
    assert rates == {"a": 1e-4, "b": 1e-4, "e": 1e-4, "gates": 0.03, "log_steps": 0.2}


@pytest.mark.parametrize("n_bits, gates", [(4, 1), (8, 2), (16, 3), (32, 4)])
@pytest.mark.parametrize("prune_rank", [True, False])
@pytest.mark.parametrize("acts", [True, False])
def test_what_it_trains_is_counted_in_closed_form(n_bits, gates, prune_rank, acts):
    model = fresh(n_bits=n_bits, prune_rank=prune_rank, quantise_activations=acts)
    weights = 3 if prune_rank else 2
    extra = (4 + 3 if prune_rank else 0) + weights + (2 if acts else 1) * weights * gates
    want = 4 * (4 * (12 + 20) + extra)
    assert lorica.trainable_parameters(model).trainable == want


def test_all_gates_open_at_16_bits_is_nearly_the_plain_product():
    model = fresh()
    adapter = first(model)
    plain = adapter.scale * adapter.b @ torch.diag(adapter.e) @ adapter.a
    a, b = adapter.factors()
    torch.testing.assert_close(b @ a, plain, atol=1e-6, rtol=1e-3)
    layer = model.layers[0]["up"]
    torch.testing.assert_close(layer(X), Stack().layers[0]["up"](X) + X @ (b @ a).T)


def test_each_tensor_has_the_bits_that_its_gates_say():
    model = fresh(r=8, base=nn.Sequential(nn.Linear(40, 30)))
    adapter = first(model.eval())
    put(adapter, a=[-1.0, 6, 6], b=[6.0, 6, -1], e=[6.0, -1, 6])
    schedule = Driver(model, total=5).schedule
    assert schedule.facts() == {"bits": {"0": {"a": 2, "b": 8, "e": 4}}}
    a, b, e = adapter.rounded(*adapter.open_gates(None))
    steps = adapter.log_steps.exp() / torch.tensor([1, 5 * 17, 5])
    for rounded, step, levels in zip((a, b, e), steps, (3, 255, 15), strict=True):
        codes = rounded / step
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert codes.unique().numel() <= levels
        assert codes.abs().max() > 0
    up, down = adapter.factors()
    torch.testing.assert_close(down @ up, adapter.scale * b @ torch.diag(e) @ a)
    torch.testing.assert_close(
        model(torch.eye(40)) - model[0].bias - model[0].weight.T,
        (down @ up).T,
        atol=1e-6,
        rtol=1e-5,
    )


def test_ranks_are_a_prefix():
    model = fresh(r=5)
    schedule = Driver(model, total=5).schedule
    assert set(schedule.ranks().values()) == {5}
    put(adapters(model)[0], ranks=[6.0, -1, 6, 6])
    put(adapters(model)[1], ranks=[-1.0, 6, 6, 6])
    assert list(schedule.ranks().values()) == [2, 1, 5, 5]
    a, b = adapters(model)[0].factors()
    assert (a.shape, b.shape) == ((2, 12), (20, 2))
    x, before = X, model.eval()(X)
    with torch.no_grad():
        adapters(model)[0].a[2:] += 1
        adapters(model)[0].e[2:] += 1
    assert torch.equal(model(x), before), "what lies past the prefix is out of use"
    assert fresh(r=1).train()(x).isfinite().all()
    assert set(Driver(fresh(r=1), total=5).schedule.ranks().values()) == {1}
    assert set(Driver(fresh(r=5, prune_rank=False), total=5).schedule.ranks().values()) == {5}


def test_gates_are_drawn_in_training_and_fixed_afterwards():
    model = fresh(gate_start=0.0)
    schedule = Driver(model, total=9).schedule
    model.train()
    assert torch.equal(model(X), model(X)), "one draw for all passes of a step"
    median = model(X)
    draws = [median]
    for t in (1, 2):
        schedule.after_step(t)
        draws.append(model(X))
        assert not torch.equal(draws[-1], draws[-2])
    model.eval()
    settled = model(X)
    schedule.after_step(3)
    assert torch.equal(model(X), settled)
    assert not torch.equal(settled, median)


def test_what_the_gates_of_a_step_are():
    model = fresh(gate_start=0.5)
    adapter = first(model)
    Driver(model, total=9).schedule.after_step(4)
    noise = bits.noise(9 + 3, adapter.seed + 4)
    assert torch.equal(adapter.noise, noise)
    u = torch.sigmoid(noise)
    z = (torch.sigmoid(((u / (1 - u)).log() + 0.5) * 1.5) * 1.2 - 0.1).clamp(0, 1)
    grids, ranks = adapter.open_gates(adapter.noise)
    torch.testing.assert_close(torch.cat([*grids.values()]), z[:9], atol=1e-5, rtol=1e-5)
    want = [1, *z[9:].cumprod(0).round().tolist()]
    assert ranks.tolist() == want
    assert len({a.seed for a in adapters(model)}) == 4, "sites draw apart"
    assert [a.seed for a in adapters(fresh())] == [a.seed for a in adapters(fresh())]
    assert first(fresh(seed=1)).seed != adapter.seed


def test_a_gate_that_is_off_stays_off_in_training():
    model = fresh()
    put(first(model), a=[6.0, -2, 6])
    schedule = Driver(model, total=99).schedule
    for t in range(1, 40):
        schedule.after_step(t)
        z = first(model).open_gates(first(model).noise)[0]["a"]
        assert z[1] == z[2] == 0
        assert z[0] > 0


def test_gradients_pass_through_the_rounding():
    """Those of A, B and E are those of the rounded product, as if nothing were rounded."""
    model = fresh()
    adapter, x = first(model), X
    with torch.no_grad():
        adapter.a *= 5  # past the range that its grid began with
        adapter.e *= 5
    a, b, e = (t.detach().requires_grad_() for t in adapter.rounded(*adapter.open_gates(None)))
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    branch = adapter.after(x, torch.zeros(8, 20), nn.Identity())
    (branch * weight).sum().backward()
    (adapter.scale * (x @ a.T * e) @ b.T * weight).sum().backward()
    for mine, plain in ((adapter.a, a), (adapter.b, b), (adapter.e, e)):
        torch.testing.assert_close(mine.grad, plain.grad, atol=1e-6, rtol=1e-5)
    assert adapter.log_steps.grad.abs().max() > 0
    assert adapter.gates.grad.abs().max() == 0, "saturated: the penalty alone moves them yet"
    soft = fresh(gate_start=0.0)
    soft(x).square().sum().backward()
    assert all(a.gates.grad.abs().max() > 0 for a in adapters(soft))


@pytest.mark.parametrize("prune_rank, acts", [(True, False), (False, False), (True, True)])
def test_the_penalty_by_hand(prune_rank, acts):
    q = 0.9994991
    chain = 1 + q + q**2 + q**3
    grids = (3 if prune_rank else 2) * (2 if acts else 1)
    want = (grids - prune_rank) * chain + prune_rank * q * chain
    model = fresh(penalty=0.01, prune_rank=prune_rank, quantise_activations=acts)
    found = Driver(model, total=9).schedule.penalty(1)
    assert found.item() == pytest.approx(0.01 * 4 * want, rel=1e-5)


def test_the_penalty_of_bits_counts_multiplications():
    """12 to 20 features, r = 4: A 48, B 80, E 4 multiplications; 20 to 12 the other way round."""
    q = 0.9994991
    chain = 2 + 4 * q + 8 * q**2 + 16 * q**3
    found = Driver(fresh(cost="bits", penalty=1.0), total=9).schedule.penalty(1)
    want = 4 * chain * (48 + 80 + q * 4) / 80
    assert found.item() == pytest.approx(want, rel=1e-5)
    assert Driver(fresh(), total=9).schedule.largest == 0


def test_it_falls_with_every_gate():
    model = fresh(r=3)
    schedule, adapter = Driver(model, total=9).schedule, first(model)
    penalty = schedule.penalty(1)
    penalty.backward()
    assert (adapter.gates.grad > 0).all()
    for i in range(len(adapter.gates)):
        with torch.no_grad():
            adapter.gates[i] -= 1.0
        assert schedule.penalty(1) < penalty
        with torch.no_grad():
            adapter.gates[i] += 1.0


def test_bits_and_ranks_fall_where_they_cost_more_than_they_bring():
    settings = {"penalty": 0.3, "gate_start": 2.0, "gate_lr": 0.1}
    dear = Run(fresh(r=8, **settings), 80, **settings)
    free = Run(fresh(r=8, **settings | {"penalty": 0.0}), 80, **settings)
    for _ in range(80):
        dear.step(), free.step()
    widths = []
    for run in (dear, free):
        schedule = run.driver.schedule
        widths.append([n for grids in schedule.facts()["bits"].values() for n in grids.values()])
        assert set(schedule.ranks()) == {f"layers.{i}.{k}" for i in (0, 1) for k in ("up", "down")}
    assert sum(widths[0]) < sum(widths[1]) / 2
    assert sum(dear.driver.schedule.ranks().values()) < sum(free.driver.schedule.ranks().values())
    assert free.losses[-1] < free.losses[0] * 0.9, "it learns"
