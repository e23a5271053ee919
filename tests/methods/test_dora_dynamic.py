"""DoRA-dynamic: the vectors of the specification, whole schedules, resuming."""

import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.errors import ConfigError
from lorica.methods.dora_dynamic import DoraDynamic, DoraDynamicAdapter, Pruning
from tests.laws.bases import Stack
from tests.methods.driving import Run, same, zeros

SHORT = {"r": 6, "target_r": 2, "interval": 4}  # of 60 steps: p = t - 9, last = 21, end at 30


class Sites(nn.Module):
    def __init__(self, sites: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 4) for _ in range(sites))


def scheduled(sites: int, total: int, **settings) -> Pruning:
    schedule = Driver(lorica.adapt(Sites(sites), DoraDynamic(**settings)), total=total).schedule
    assert isinstance(schedule, Pruning)
    return schedule


def one(inputs: int = 2, outputs: int = 2, **settings) -> tuple[nn.Module, DoraDynamicAdapter]:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), DoraDynamic(**{"r": 2, "target_r": 1, **settings}))
    (adapter,) = attached(model, "default").adapters.values()
    assert isinstance(adapter, DoraDynamicAdapter)
    return model, adapter


def put(tensor: torch.Tensor, values) -> None:
    tensor.data.copy_(torch.tensor(values))


def test_the_branch_by_hand():
    model, adapter = one(alpha=3)
    put(adapter.a, [[1.0, 2], [3, 4]])
    put(adapter.c, [0.5, -1.0])
    put(adapter.b, [[1.0, 0], [2, 1]])
    torch.testing.assert_close(model(torch.ones(2)), 1.5 * torch.tensor([1.5, 3.0 - 7]))


def test_starts_and_the_scale():
    _, adapter = one(400, 300, r=24, target_r=16, alpha=8)
    assert adapter.scale == 8 / 24
    assert one()[1].scale == 2
    for tensor, bound in ((adapter.a, math.sqrt(6 / 400)), (adapter.b, math.sqrt(6 / 24))):
        assert 0.99 * bound < tensor.abs().max().item() <= bound
        assert abs(tensor.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    assert adapter.c.tolist() == [0] * 24


def test_the_first_step_moves_c_alone():
    model = lorica.adapt(Stack(), DoraDynamic(r=4))
    model(torch.randn(3, 12)).square().sum().backward()
    for adapter in attached(model, "default").adapters.values():
        assert adapter.a.grad.abs().max() == adapter.b.grad.abs().max() == 0
        assert (adapter.c.grad != 0).all()


def test_the_counts_of_the_schedule():
    schedule = scheduled(12, 1000, r=12, target_r=8, interval=100)
    assert schedule.last == 350
    assert [schedule.steps_since_first(t) for t in (1, 149, 150, 500, 501)] == [
        -149,
        -1,
        0,
        350,
        351,
    ]
    assert [schedule.n_pruned(t) for t in (150, 200, 250, 325, 400, 450, 500)] == [
        0,
        0,
        1,
        6,
        17,
        30,
        48,
    ]
    counts = [schedule.n_pruned(t) for t in range(1, 1001)]
    assert counts == sorted(counts)
    assert counts[-1] == 48


@pytest.mark.parametrize("total", range(1, 300, 7))
def test_the_last_pruning_is_met_in_every_run(total):
    schedule = scheduled(1, total)
    steps = [schedule.steps_since_first(t) for t in range(1, total + 1)]
    assert schedule.last in steps
    assert schedule.last == int(total * 7 / 20 + 1e-9)


def test_no_run_length_loses_a_step_to_rounding():
    """The authors' int() does at 34 lengths: 0.35 T is whole there, and floats fall short of it."""
    short = [t for t in range(1, 3000) if int(t * (1 - 0.15 - 0.5)) != t * 7 // 20]
    assert (len(short), short[:3]) == (34, [180, 340, 360])
    assert all(scheduled(1, t).last == t * 7 // 20 for t in short)


def test_the_score_by_hand():
    _, adapter = one()
    put(adapter.a, [[3.0, 0], [0, 4]])
    put(adapter.c, [2.0, 1.0])
    put(adapter.b, [[1.0, 0], [0, 1]])
    shares = adapter.shares().detach()
    torch.testing.assert_close(shares, torch.tensor([0.8320503, 0.5547002]))
    assert shares.square().sum().item() == pytest.approx(1)
    schedule = Pruning(DoraDynamic(r=2, target_r=2), {"s": adapter}, 100)
    schedule.after_step(1)
    torch.testing.assert_close(schedule.scores["s"], torch.tensor([0.0832050, 0.0554700]))
    schedule.after_step(2)
    torch.testing.assert_close(schedule.scores["s"], 1.9 * torch.tensor([0.0832050, 0.0554700]))


def test_the_score_is_the_norm_of_the_component_over_the_norm_of_the_sum():
    _, adapter = one(7, 9, r=5, target_r=3)
    nn.init.normal_(adapter.c)
    parts = torch.einsum("ok,k,ki->koi", adapter.b, adapter.c, adapter.a)
    want = parts.flatten(1).norm(dim=1) / (parts.sum(0).norm() + 1e-8)
    torch.testing.assert_close(adapter.shares(), want)
    nn.init.zeros_(adapter.c)
    assert adapter.shares().tolist() == [0] * 5


def test_the_penalty_by_hand():
    model, adapter = one(3, 2, eta=0.25)
    put(adapter.a, [[1.0, 2, 3], [0, 0, 0]])
    put(adapter.b, [[1.0, 2], [3, 2]])
    assert Driver(model, total=100).penalty().item() == pytest.approx(0.25 * 0.75)
    free, _ = one(eta=0)
    assert Driver(free, total=100).penalty() == 0


def test_the_penalty_ends_after_the_last_pruning():
    schedule = scheduled(2, 60, **SHORT)
    assert [schedule.penalty(t) is None for t in (1, 8, 9, 29, 30, 31, 60)] == [
        False,
        False,
        False,
        False,
        False,
        True,
        True,
    ]


def test_a_site_of_one_output_has_a_penalty():
    model, adapter = one(3, 1, eta=1.0)
    want = adapter.a.var(1).sum() / 4
    assert Driver(model, total=100).penalty().item() == pytest.approx(want.item())


def test_a_run_prunes_by_the_clock():
    run = Run(DoraDynamic(**SHORT), 60)
    back, last = False, {}
    for t in range(1, 61):
        before = zeros(run.vectors("c").values())
        run.step()
        gone = zeros(run.vectors("c").values())
        if t < 9:
            assert gone == 0
        elif t < 30 and (t - 9) % 4 == 0:
            assert gone == max(int(16 * ((t - 9) / 21) ** 3), 1)
        elif t < 30:
            back = back or before > gone
        else:
            last = last or {s: c == 0 for s, c in run.vectors("c").items()}
            assert gone == 16
            assert all(torch.equal(c == 0, last[s]) for s, c in run.vectors("c").items())
    assert back, "before the last pruning a component may come back"
    assert run.schedule.facts() == {
        "target_total_rank": 8,
        "total_rank": 8,
        "ranks_change_from": 9,
        "ranks_stay_from": 30,
    }
    assert {k: len(a.factors()[0]) for k, a in run.adapters.items()} == run.schedule.ranks()


def test_the_scores_end_with_the_last_pruning():
    run = Run(DoraDynamic(**SHORT), 60).to(30)
    scores = {k: t.clone() for k, t in run.schedule.state().items()}
    for t in range(31, 61):
        run.step(lambda t: [nn.init.normal_(a.c) for a in run.adapters.values()])
        assert zeros(run.vectors("c").values()) == 16, t
    assert all(torch.equal(t, scores[k]) for k, t in run.schedule.state().items())
    assert run.to(60).driver.t == 60


def test_ties_prune_no_more_than_asked_for():
    schedule = scheduled(3, 60, r=6, target_r=4, interval=3)
    for t in range(1, 61):
        for adapter in schedule.adapters.values():
            for parameter in adapter.parameters():
                nn.init.ones_(parameter)
        schedule.after_step(t)
        gone = 18 - sum(schedule.ranks().values())
        if t >= 30:
            assert gone == 6
        elif t >= 9 and (t - 9) % 3 == 0:
            assert gone == max(schedule.n_pruned(t), 1)
        else:
            assert gone == 0


def test_as_many_at_the_end_as_at_the_start():
    run = Run(DoraDynamic(r=4, target_r=4, interval=1), 40).to(40)
    assert zeros(run.vectors("c").values()) == 0


def test_the_export_drops_what_is_out_and_keeps_the_scale(tmp_path):
    run = Run(DoraDynamic(**SHORT, alpha=9), 60).to(60)
    x = torch.randn(5, 12)
    want = run.model(x)
    with torch.no_grad():
        empty = run.adapters["layers.0.up"]
        kept = empty.c.clone()
        empty.c.zero_()
        a, b = empty.factors()
        assert (a.shape, b.shape) == ((0, 12), (20, 0))
        empty.c.copy_(kept)
    for adapter in run.adapters.values():
        on = adapter.c != 0
        a, b = adapter.factors()
        assert torch.equal(a, adapter.a[on])
        torch.testing.assert_close(b, 9 / 6 * adapter.b[:, on] * adapter.c[on])
    lorica.save(run.model, tmp_path / "adapter")
    fresh = Stack()
    lorica.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), want)
    lorica.merge(run.model)
    torch.testing.assert_close(run.model(x), want, atol=1e-5, rtol=1e-4)


def test_decay_never_reaches_what_is_out():
    run = Run(DoraDynamic(**SHORT), 60).to(40)
    live = run.schedule.live()
    assert live.keys() == run.tensors.keys()
    for site, adapter in run.adapters.items():
        on = adapter.c != 0
        assert torch.equal(live[f"{site}.c"], on)
        assert torch.equal(live[f"{site}.a"].expand_as(adapter.a)[:, 0], on)
        assert torch.equal(live[f"{site}.b"].expand_as(adapter.b)[0], on)
    assert sum(int(m.sum()) for k, m in live.items() if k.endswith(".c")) == 8


@pytest.mark.parametrize("stop", [1, 10, 29, 30, 41])
def test_resuming_changes_no_bit(stop):
    whole = Run(DoraDynamic(**SHORT), 60).to(60)
    half = Run(DoraDynamic(**SHORT), 60).to(stop)
    rest = half.resumed().to(60)
    assert same(whole, rest)
    assert not same(whole, half)


def test_a_state_that_lacks_something_is_noticed():
    run = Run(DoraDynamic(r=3), 20).to(3)
    state = run.driver.state()
    del state["layers.1.up.c"]
    with pytest.raises(lorica.LoricaError, match=r"layers\.1\.up\.c"):
        Run(DoraDynamic(r=3), 20).driver.load_state(state)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_short_runs_reach_their_target(total):
    run = Run(DoraDynamic(r=3, target_r=2), total).to(total)
    assert sum(run.schedule.ranks().values()) == 8


def test_ranks_of_single_sites():
    pattern = {r"layers\.0\.up": 2}
    run = Run(DoraDynamic(r=6, target_r=3, interval=1), 40, rank_pattern=pattern).to(40)
    assert sum(run.schedule.ranks().values()) == 3 * 3 + 2


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "dora_dynamic.r is"),
        ({"target_r": 13}, "target_r is 13"),
        ({"target_r": 0}, "target_r"),
        ({"alpha": -1}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"start_ratio": -0.1}, "start_ratio"),
        ({"end_ratio": 1.0}, "end_ratio"),
        ({"start_ratio": 0.5}, "leave no steps"),
        ({"interval": 0}, "interval"),
        ({"interval": 2.5}, "interval"),
        ({"beta": 1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"eta": -1}, "eta"),
        ({"eta": math.inf}, "eta"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        DoraDynamic(**settings)
    assert error.value.fix


def test_dropout_acts_in_training_alone():
    model = Run(DoraDynamic(r=4, dropout=0.5), 10).to(5).model
    x = torch.ones(4, 12)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_the_interval_follows_the_run():
    for total, want in ((10, 1), (1_000, 12), (8_000, 100), (80_000, 100)):
        assert scheduled(1, total).interval == want
    assert scheduled(1, 1_000, interval=70).interval == 70
