"""ALoRA: whole runs, resuming, the rounds and the settings."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError
from lorica.methods.alora import Alora, AloraAdapter
from lorica.methods.alora.schedule import Allocation
from tests.laws.bases import Stack, move
from tests.methods.alora.driving import SHORT, Loop, X, dead_parts, loss_of, ranked
from tests.methods.llama import llama
from tests.training.rows import adapter as saved
from tests.training.rows import interrupt, same, settings


def test_the_total_never_changes_and_what_is_out_never_moves():
    model = lorica.adapt(Stack(), Alora(r=2, **SHORT))
    loop, seen = Loop(model, 15), []
    for _ in range(15):
        loop.steps(1)
        ranks = loop.schedule.ranks()
        assert sum(ranks.values()) == 8
        assert not any(part.any() for part in dead_parts(model)), "exact zeros"
        seen.append(tuple(ranks.values()))
    changes = [t for t in range(1, 15) if seen[t] != seen[t - 1]]
    assert changes and {t + 1 for t in changes} <= {4, 7, 10}
    assert all(a.g.unique().tolist() in ([0, 1], [1]) for a in ranked(model).values())


def test_momentum_would_move_a_pruned_rank():
    """Without the schedule's hand, AdamW goes on moving what was just pruned."""
    model = lorica.adapt(Stack(), Alora(r=2, first_round=50))
    loop = Loop(model, 100)
    loop.steps(3)
    (adapter, *_) = ranked(model).values()
    adapter.g[1] = 0
    adapter.zero_inactive()
    loss_of(model).backward()
    loop.optimizer.step()
    assert adapter.b[:, 1].any() and adapter.a[1].any()
    adapter.zero_inactive()
    assert not adapter.b[:, 1].any() and not adapter.a[1].any()


def test_a_new_rank_starts_fresh_and_leaves_the_output():
    model = move(lorica.adapt(Stack(), Alora(r=2, r_max=3)))
    adapters = ranked(model)
    first, *_, last = adapters
    schedule = Allocation(adapters, 1, 1, 1)
    loses = {site: {0: 1.0, 1: 1.0} for site in adapters}
    loses[first] = {0: 1.0, 1: -1.0}
    loses[last] = {0: 0.5, 1: -2.0}
    old = adapters[first].a[1].detach().clone()

    def draw(model: nn.Module) -> dict[str, AloraAdapter]:
        adapters = ranked(model)
        schedule = Allocation(adapters, 1, 1, 1)
        schedule.move_ranks(loses, torch.Generator().manual_seed(3))
        return adapters

    again = draw(copy.deepcopy(model))
    for adapter in adapters.values():
        adapter.zero_inactive()
    pruned = copy.deepcopy(model)
    for site, i in ((first, 1), (last, 1)):
        ranked(pruned)[site].g[i] = 0
    schedule.move_ranks(loses, torch.Generator().manual_seed(3))
    assert schedule.ranks() == {s: 1 if s in (first, last) else 3 for s in adapters}
    assert torch.equal(model(X), pruned(X)), "an added rank does nothing yet"
    assert set(schedule.fresh()) == {
        f"{s}.{k}" for s in adapters if s not in (first, last) for k in "ab"
    }
    for site, adapter in adapters.items():
        if site in (first, last):
            continue
        assert adapter.g.tolist() == [1, 1, 1] and not adapter.b[:, 2].any()
        bound = adapter.a.shape[1] ** -0.5
        assert 0 < adapter.a[2].abs().max() <= bound
        assert adapter.a[2].unique().numel() > 5
        assert torch.equal(adapter.a, again[site].a), "drawn from the generator alone"
    adapters[first].grow(1)
    assert adapters[first].g.tolist() == [1, 1, 0]
    assert not adapters[first].b[:, 1].any()
    assert not torch.equal(adapters[first].a[1], old), "a revived rank is a new one"


def test_a_run_that_goes_on_is_the_same_to_the_bit():
    whole = Loop(lorica.adapt(Stack(), Alora(r=2, **SHORT)), 15)
    whole.steps(15)
    for at in (3, 4, 8):  # before a round, right after one, between two
        first = Loop(lorica.adapt(Stack(), Alora(r=2, **SHORT)), 15)
        first.steps(at)
        kept = {k: t.detach().clone() for k, t in adapter_state(first.model).items()}
        second = Loop(lorica.adapt(Stack(), Alora(r=2, **SHORT), seed=9), 15)
        load_adapter_state(second.model, kept)
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        second.driver.load_state(first.driver.state())
        torch.manual_seed(at)  # new ranks are drawn from no global state
        second.steps(15 - at)
        assert same(
            {k: t.detach() for k, t in adapter_state(whole.model).items()},
            {k: t.detach() for k, t in adapter_state(second.model).items()},
        ), at
    assert set(whole.schedule.ranks().values()) != {2}


def test_rank_patterns_keep_their_total():
    model = lorica.adapt(
        Stack(), Alora(r=2, r_max=4, **SHORT), rank_pattern={"up": 3}, alpha_pattern={"up": 3.0}
    )
    loop = Loop(model, 15)
    assert loop.schedule.ranks() == {
        f"layers.{i}.{k}": n for i in (0, 1) for k, n in (("up", 3), ("down", 2))
    }
    loop.steps(15)
    assert sum(loop.schedule.ranks().values()) == 10
    assert ranked(model)["layers.0.up"].scale == 1


@pytest.mark.slow
def test_the_trainer_moves_ranks_and_goes_on_to_the_bit(small_base, tmp_path, monkeypatch):
    run = {
        "method": {"name": "alora", "r": 2, "rounds": 1, "first_round": 3, "dropout": 0.1},
        "max_steps": 6,
        "save_steps": 2,
        "target_modules": ["q_proj", "v_proj"],
        "weight_decay": 0.1,
        "micro_batch_size": 4,
    }
    whole = lorica.train(**settings(small_base, tmp_path / "a", **run), show=False)
    ranks = whole.figures["ranks"]
    assert sum(ranks.values()) == 2 * len(ranks) == 8 and set(ranks.values()) != {2}
    held_out = whole.figures["held_out_loss"]
    assert held_out["after"] < held_out["before"]
    for at in (2, 5):  # before the round, and after it
        cut = settings(small_base, tmp_path / f"b{at}", **run)
        interrupt(monkeypatch, at, **cut)
        again = lorica.train(resume=cut["output"], show=False)
        assert same(saved(whole.folder), saved(again.folder))
        assert again.figures["ranks"] == ranks


def phases(total: int, epoch: int, **changed) -> range:
    model = lorica.adapt(Stack(), Alora(r=2, **changed))
    schedule = Driver(model, total=total, epoch=epoch).schedule
    assert isinstance(schedule, Allocation)
    return schedule.rounds


def test_when_the_rounds_are():
    assert [*phases(1000, 100)] == [100, 125, 150, 175, 200, 225, 250, 275], "the paper's epochs"
    assert phases(300, 100) == phases(1000, 100), "three epochs are enough"
    assert phases(299, 100) == range(49, 49 + 8 * 12, 12), "one step less: in the first half"
    assert phases(240, 240) == range(40, 120, 10)
    assert phases(9, 100) == range(1, 9), "the shortest run"
    assert phases(100, 10, first_round=50, round_every=5) == range(50, 90, 5)
    assert phases(40, 100, rounds=2) == range(13, 19, 3)
    assert phases(1000, 4) == range(4, 12)
    assert phases(1000, 3) == phases(1000, 999), "a quarter of this epoch is no step"


@pytest.mark.parametrize(
    "total, changed",
    [
        (8, {}),
        (60, {"first_round": 60}),
        (60, {"round_every": 10}),
        (100, {"first_round": 10, "round_every": 10, "rounds": 10}),
    ],
    ids=str,
)
def test_rounds_that_do_not_fit(total, changed):
    with pytest.raises(ConfigError, match=f"do not fit into {total} steps") as error:
        phases(total, 10, **changed)
    assert error.value.fix and int(str(error.value.facts["steps_needed"])) > total


def test_a_run_without_a_probe_says_so():
    model = lorica.adapt(Stack(), Alora(r=2, **SHORT))
    loop = Loop(model, 15)
    del loop.schedule.probe
    loop.steps(3)
    with pytest.raises(ConfigError, match="batch") as error:
        loop.steps(1)
    assert "driver.schedule.probe" in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"r": 0},
        {"r": 2.5},
        {"r": None},
        {"r": 8, "r_max": 7},
        {"r_max": 16.5},
        {"rounds": 0},
        {"rounds": None},
        {"first_round": 0},
        {"round_every": 0},
        {"round_every": -1},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"dropout": float("nan")},
    ],
    ids=str,
)
def test_settings_out_of_range(changed):
    with pytest.raises(ConfigError, match=rf"alora\.{[*changed][-1]} ") as error:
        Alora(**changed)
    assert error.value.fix


def test_what_is_trained_is_what_count_says():
    for settings_ in ({"r": 3}, {"r": 3, "r_max": 4}):
        model = lorica.adapt(Stack(), Alora(**settings_))
        rows = settings_.get("r_max") or 6
        assert lorica.trainable_parameters(model).trainable == rows * 4 * (12 + 20)
    assert Alora.count == "(r_max or 2 * r) * (I + O)"


def test_the_head_is_left_out():
    sites = ranked(lorica.adapt(llama(), Alora()))
    assert len(sites) == 35 and not any("lm_head" in site for site in sites)
