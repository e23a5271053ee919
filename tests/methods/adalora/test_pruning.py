"""AdaLoRA, mode decrease: the budget, the scores, what is pruned, resuming."""

import pytest
import torch
from torch import nn

import lorica
from lorica.errors import ConfigError
from lorica.methods.adalora import Adalora
from tests.laws.bases import Stack
from tests.methods.adalora.driving import PHASES, scheduled
from tests.methods.driving import Run, same, zeros


def test_the_budget():
    of = scheduled(12, 1000, r=12, target_r=8, tinit=100, tfinal=200, deltaT=10).budget
    assert [of(t) for t in (1, 100, 110, 200, 275, 450, 625, 800, 801, 1000)] == [
        144,
        144,
        141,
        126,
        116,
        102,
        96,
        96,
        96,
        96,
    ]
    of = scheduled(3, 100, r=6, target_r=4, tinit=10, tfinal=20).budget
    assert [of(t) for t in (10, 11, 20, 27, 45, 80, 100)] == [18, 17, 15, 14, 12, 12, 12]
    budgets = [of(t) for t in range(1, 101)]
    assert budgets == sorted(budgets, reverse=True)


def test_a_run_keeps_to_its_budget():
    run = Run(Adalora(r=6, target_r=2, tinit=10, tfinal=15, deltaT=5), 60)
    most, back = 4 * 6, False
    for t in range(1, 61):
        before = run.vectors("e")
        run.step()
        total = sum(run.schedule.ranks().values())
        if t <= 10:
            assert total == most
        elif t >= 45 or t % 5 == 0:
            assert total == run.schedule.budget(t)
        else:
            back = back or zeros(before.values()) > zeros(run.vectors("e").values())
    assert back, "between two changes a component may come back"
    assert sum(run.schedule.ranks().values()) == 4 * 2
    assert run.schedule.facts() == {
        "target_total_rank": 8,
        "total_rank": 8,
        "ranks_change_from": 11,
        "ranks_stay_from": 45,
    }


def test_the_end_is_final():
    run = Run(Adalora(r=6, target_r=2, **PHASES), 40).to(30)
    gone = {s: e == 0 for s, e in run.vectors("e").items()}
    averages = {k: t.clone() for k, t in run.schedule.state().items()}
    for _ in range(10):
        run.step(lambda t: [nn.init.normal_(a.e) for a in run.adapters.values()])
        for site, e in run.vectors("e").items():
            assert torch.equal(e == 0, gone[site])
    assert all(torch.equal(t, averages[k]) for k, t in run.schedule.state().items())


def test_no_final_phase_still_ends_at_the_target():
    run = Run(Adalora(r=6, target_r=2, tinit=0, tfinal=0, deltaT=7), 20).to(20)
    assert sum(run.schedule.ranks().values()) == 8


def test_scores_take_the_new_weights_with_the_old_gradients():
    run = Run(Adalora(r=4, target_r=4), 10)
    grads = {}

    def keep(t):
        grads.update({k: p.grad.clone() for k, p in run.tensors.items()})

    run.step(keep)
    for key, tensor in run.tensors.items():
        fresh = (tensor.detach() * grads[key]).abs()
        mean, spread = run.schedule.state()[key]
        torch.testing.assert_close(mean, 0.15 * fresh)
        torch.testing.assert_close(spread, 0.15 * 0.85 * fresh)


def test_a_component_scores_its_e_its_row_and_its_column():
    run = Run(Adalora(r=4, target_r=4), 10).to(3)
    state = {k: t[0] * t[1] for k, t in run.schedule.state().items()}
    for site, score in run.schedule.scores().items():
        for i in range(4):
            want = state[f"{site}.e"][i] + state[f"{site}.a"][i].mean()
            want = want + state[f"{site}.b"][:, i].mean()
            torch.testing.assert_close(score[i], want)


def test_as_many_at_the_end_as_at_the_start():
    run = Run(Adalora(r=4, target_r=4, **PHASES), 40).to(40)
    assert run.schedule.ranks() == dict.fromkeys(run.adapters, 4)
    assert zeros(run.vectors("e").values()) == 0


def test_ties_prune_no_more_than_asked_for():
    schedule = scheduled(3, 40, r=6, target_r=4, orth_reg_weight=0, **PHASES)
    for adapter in schedule.adapters.values():
        for parameter in adapter.parameters():
            nn.init.ones_(parameter)
            parameter.grad = torch.ones_like(parameter)
    for t in range(1, 41):
        schedule.after_step(t)
        if schedule.phases.is_due(t):
            assert sum(schedule.ranks().values()) == schedule.budget(t)
            for adapter in schedule.adapters.values():
                nn.init.ones_(adapter.e)
    assert schedule.ranks() == {"layers.0": 0, "layers.1": 6, "layers.2": 6}


def test_a_site_of_rank_zero_exports_merges_and_is_saved(tmp_path):
    run = Run(Adalora(r=3, target_r=1, **PHASES), 40).to(40)
    first, *_, last = run.adapters.values()
    with torch.no_grad():
        first.e.zero_()
        last.e.copy_(torch.tensor([0.0, 0.3, 0.0]))
    a, b = first.factors()
    assert (a.shape, b.shape) == ((0, 12), (20, 0))
    a, b = last.factors()
    assert (a.shape, b.shape) == ((1, 20), (12, 1))
    torch.testing.assert_close(b, last.scale * 0.3 * last.b[:, 1:2])
    x = torch.randn(5, 12)
    want = run.model(x)
    lorica.save(run.model, tmp_path / "adapter")
    fresh = Stack()
    lorica.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), want)
    lorica.merge(run.model)
    torch.testing.assert_close(run.model(x), want)


def test_decay_never_reaches_what_is_out():
    run = Run(Adalora(r=4, target_r=2, **PHASES), 40).to(30)
    live = run.schedule.live()
    assert live.keys() == run.tensors.keys()
    for site, adapter in run.adapters.items():
        on = adapter.e != 0
        assert torch.equal(live[f"{site}.e"], on)
        assert torch.equal(live[f"{site}.a"].expand_as(adapter.a)[:, 0], on)
        assert torch.equal(live[f"{site}.b"].expand_as(adapter.b)[0], on)
    assert 0 < sum(int(m.sum()) for k, m in live.items() if k.endswith(".e")) < 16


@pytest.mark.parametrize("mode", ["decrease", "increase"])
@pytest.mark.parametrize("stop", [1, 12, 29, 30, 34])
def test_resuming_changes_no_bit(mode, stop):
    whole = Run(Adalora(r=5, target_r=3, mode=mode, **PHASES), 40).to(40)
    half = Run(Adalora(r=5, target_r=3, mode=mode, **PHASES), 40).to(stop)
    rest = half.resumed().to(40)
    assert same(whole, rest)
    assert rest.schedule.ranks() == whole.schedule.ranks()
    assert not same(whole, half)


def test_a_state_that_lacks_something_is_noticed():
    for mode in ("decrease", "increase"):
        run = Run(Adalora(r=3, mode=mode), 20).to(3)
        for key in run.schedule.state():
            state = run.driver.state()
            del state[key]
            with pytest.raises(lorica.LoricaError, match=key):
                Run(Adalora(r=3, mode=mode), 20).driver.load_state(state)


@pytest.mark.parametrize("mode", ["decrease", "increase"])
def test_cleared_gradients_are_noticed(mode):
    run = Run(Adalora(r=3, mode=mode), 20)
    run.model(torch.randn(2, 12)).sum().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    with pytest.raises(ConfigError, match="gradients"):
        run.driver.after_step()


@pytest.mark.parametrize("mode", ["decrease", "increase"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_short_runs_reach_their_target_by_what_they_saw(mode, total):
    run = Run(Adalora(r=3, target_r=2, mode=mode), total).to(total)
    assert sum(run.schedule.ranks().values()) == 8
    assert any(t.any() for t in run.schedule.state().values())
