"""AdaLoRA: the vectors of the specification, PEFT as a referee, whole schedules, resuming."""

import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import adapted_layers, attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state
from lorica.errors import ConfigError
from lorica.methods.adalora import Adalora
from lorica.methods.adalora.schedule import WARM_UP, Decrease, Increase
from tests.laws.bases import Stack
from tests.methods.driving import Run, same, zeros

PHASES = {"tinit": 5, "tfinal": 10, "deltaT": 3}


class Sites(nn.Module):
    """Linear layers side by side."""

    def __init__(self, sites: int, inputs: int = 5, outputs: int = 4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(sites))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], -1)


def scheduled(sites: int, total: int, **settings) -> Decrease:
    model = lorica.adapt(Sites(sites), Adalora(**settings))
    schedule = Driver(model, total=total).schedule
    assert isinstance(schedule, Decrease)
    return schedule


def test_the_branch_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Adalora(r=2, target_r=1, alpha=6))
    (adapter,) = attached(model, "default").adapters.values()
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        adapter.e.copy_(torch.tensor([0.5, -1]))
        adapter.b.copy_(torch.tensor([[1.0, 0], [2, 1]]))
    want = 6 / (2 + 1e-5) * torch.tensor([1.5, 3 - 7])  # A x = (3, 7)
    torch.testing.assert_close(model(torch.ones(2)), want)


def test_the_scale_is_that_of_the_reference_and_of_the_start_rank():
    assert Adalora(r=12, alpha=8).scale == 8 / (12 + 1e-5)
    assert Adalora().scale == pytest.approx(2, abs=1e-5)
    run = Run(Adalora(r=6, target_r=2, **PHASES), 30).to(30)
    assert {a.scale for a in run.adapters.values()} == {12 / (6 + 1e-5)}
    assert any(rank < 6 for rank in run.schedule.ranks().values())


def test_starts():
    model = lorica.adapt(nn.Sequential(nn.Linear(400, 300)), Adalora(r=16))
    (adapter,) = attached(model, "default").adapters.values()
    for tensor in (adapter.a, adapter.b):
        assert abs(tensor.std().item() - 0.02) < 0.001
        assert abs(tensor.mean().item()) < 0.001
    assert adapter.e.tolist() == [0] * 16
    x = torch.randn(3, 400)
    with lorica.use(model):
        base = model(x)
    assert torch.equal(model(x), base)


def test_in_the_first_step_the_task_moves_e_alone():
    model = lorica.adapt(Stack(), Adalora(r=4))
    driver = Driver(model, total=10)
    model(torch.randn(3, 12)).square().sum().backward()
    for adapter in attached(model, "default").adapters.values():
        assert adapter.a.grad.abs().max() == adapter.b.grad.abs().max() == 0
        assert (adapter.e.grad != 0).all()
    model.zero_grad()
    driver.penalty().backward()
    for adapter in attached(model, "default").adapters.values():
        assert (adapter.a.grad != 0).all()
        assert (adapter.b.grad != 0).all()
        assert adapter.e.grad is None


def test_the_penalty_by_hand():
    for mode, want in (("frobenius_mean", 0.3 * (math.sqrt(3) + 0) / 2), ("squared_sum", 0.3 * 3)):
        model = lorica.adapt(
            nn.Sequential(nn.Linear(2, 2)), Adalora(r=2, orth_mode=mode, orth_reg_weight=0.3)
        )
        driver = Driver(model, total=10)
        (adapter,) = attached(model, "default").adapters.values()
        with torch.no_grad():
            adapter.a.copy_(torch.tensor([[1.0, 1], [0, 1]]))
            adapter.b.copy_(torch.eye(2))
        assert driver.penalty().item() == pytest.approx(want, abs=1e-6)
    free = lorica.adapt(nn.Sequential(nn.Linear(2, 2)), Adalora(r=2, orth_reg_weight=0))
    assert Driver(free, total=10).penalty() == 0


def test_the_penalty_makes_rows_orthonormal():
    run = Run(Adalora(r=4, target_r=4, orth_reg_weight=1.0), 400, lr=0.01)
    first = run.driver.penalty().item()
    run.to(400)
    assert run.driver.penalty().item() < 0.1 * first


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


def test_ranks_of_single_sites():
    for target_r, total in ((None, 3 * 4 + 2), (3, 3 * 3 + 2)):
        method = Adalora(r=6, target_r=target_r, **PHASES)
        pattern = {r"layers\.0\.up": 3 if target_r is None else 2}
        run = Run(method, 40, rank_pattern=pattern).to(40)
        assert sum(run.schedule.ranks().values()) == total
        assert run.adapters["layers.0.up"].scale == pytest.approx(2, abs=1e-4)


def test_dropout_acts_in_training_alone():
    model = Run(Adalora(r=4, dropout=0.5), 10).to(5).model
    x = torch.ones(4, 12)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_growth():
    method = Adalora(r=5, target_r=3, mode="increase", tinit=5, tfinal=10, deltaT=5)
    run = Run(method, 40)
    assert isinstance(run.schedule, Increase)
    ranks, start = dict.fromkeys(run.adapters, 1), {k: t.clone() for k, t in run.tensors.items()}
    ahead_moved = False
    for t in range(1, 41):
        run.step()
        new = run.schedule.ranks()
        assert all(ranks[site] <= new[site] <= 5 for site in ranks)
        assert new == ranks or t in (10, 15, 20, 25, 30)
        for site, e in run.vectors("e").items():
            rest = e[new[site] :].tolist()
            ahead = [pytest.approx(WARM_UP)] if t < 30 else [0]
            assert rest == (ahead + [0] * len(rest))[: len(rest)]
            row = run.adapters[site].a[1]
            ahead_moved = ahead_moved or (t < 10 and bool((row != start[f"{site}.a"][1]).all()))
        ranks = new
    assert ahead_moved
    assert sum(ranks.values()) == 12
    assert {k: len(a.factors()[0]) for k, a in run.adapters.items()} == ranks
    assert len(set(ranks.values())) > 1, "the ranks went where the scores are"


def test_the_total_grows_in_a_line():
    schedule = scheduled(4, 100, r=9, target_r=6, mode="increase", tinit=10, tfinal=10, deltaT=1)
    assert [schedule.budget(t) for t in (1, 10, 11, 30, 50, 70, 89, 90, 100)] == [
        4,
        4,
        4,
        9,
        14,
        19,
        23,
        24,
        24,
    ]


def test_what_is_not_yet_in_use_does_not_decay():
    run = Run(Adalora(r=4, target_r=2, mode="increase", **PHASES), 40).to(2)
    for key, mask in run.schedule.live().items():
        assert mask.flatten().tolist() == [True, False, False, False], key


def test_growth_prefers_the_site_that_the_loss_hangs_on():
    schedule = scheduled(3, 40, r=4, target_r=2, mode="increase", orth_reg_weight=0, **PHASES)
    for t in range(1, 31):
        for site, adapter in schedule.adapters.items():
            nn.init.ones_(adapter.e)
            adapter.e.grad = torch.full((4,), 1.0 + t % 2 if site == "layers.2" else 0.1)
        schedule.after_step(t)
    assert schedule.ranks() == {"layers.0": 1, "layers.1": 1, "layers.2": 4}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "adalora.r is"),
        ({"r": 2.5}, "adalora.r is"),
        ({"target_r": 0}, "target_r"),
        ({"r": 4, "target_r": 5}, "target_r is 5.*at most r, 4"),
        ({"target_r": 1.5}, "target_r"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"mode": "grow"}, "decrease or increase"),
        ({"tinit": -1}, "tinit"),
        ({"tfinal": -1}, "tfinal"),
        ({"deltaT": 0}, "deltaT"),
        ({"tinit": 2.5}, "tinit"),
        ({"beta1": 0}, "beta1"),
        ({"beta2": 1}, "beta2"),
        ({"beta1": math.nan}, "beta1"),
        ({"orth_reg_weight": -0.1}, "orth_reg_weight"),
        ({"orth_reg_weight": math.inf}, "orth_reg_weight"),
        ({"orth_mode": "l2"}, "frobenius_mean or"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Adalora(**settings)
    assert error.value.fix


def test_the_default_target_is_two_thirds():
    for r, target in ((12, 8), (6, 4), (4, 3), (1, 1), (48, 32)):
        model = lorica.adapt(nn.Sequential(nn.Linear(3, 3)), Adalora(r=r))
        (adapter,) = attached(model).adapters.values()
        assert adapter.target == target


def test_phases_that_leave_no_step():
    model = lorica.adapt(Stack(), Adalora(r=3, tinit=60, tfinal=40))
    with pytest.raises(ConfigError, match="leaves none of the 100 steps"):
        Driver(model, total=100)
    assert Driver(model, total=101).scheduled


def test_every_site_is_linear():
    model = lorica.adapt(Stack(), Adalora(r=3))
    assert len(list(adapted_layers(model))) == 4
    assert all(t.dtype == torch.float32 for t in adapter_state(model).values())


def of_peft(run: Run) -> nn.Module:
    """The tensors of a run under the names by which PEFT's allocator finds them; copies."""
    root = nn.Module()
    for number, adapter in enumerate(run.adapters.values()):
        layer = nn.Module()
        for name, tensor in (("A", adapter.a), ("E", adapter.e.unsqueeze(1)), ("B", adapter.b)):
            values = nn.ParameterDict({"default": nn.Parameter(tensor.detach().clone())})
            setattr(layer, f"lora_{name}", values)
        root.add_module(f"site{number}", layer)
    return root


def test_peft_gives_the_same_output():
    pytest.importorskip("peft")
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import SVDLinear

    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    config = AdaLoraConfig(init_r=4, lora_alpha=7, total_step=10)
    theirs = SVDLinear(nn.Linear(6, 5), "default", config, r=4, lora_alpha=7)
    theirs.get_base_layer().load_state_dict(layer.state_dict())
    model = lorica.adapt(nn.Sequential(layer), Adalora(r=4, alpha=7))
    (ours,) = attached(model, "default").adapters.values()
    with torch.no_grad():
        for mine, other in (
            (ours.a, theirs.lora_A),
            (ours.e, theirs.lora_E),
            (ours.b, theirs.lora_B),
        ):
            nn.init.normal_(mine)
            other["default"].copy_(mine.view_as(other["default"]))
    torch.testing.assert_close(model(x), theirs(x))


def test_autocast_and_half_precision():
    run, x = Run(Adalora(r=4), 10).to(5), torch.randn(4, 12)
    with torch.no_grad():
        want = run.model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(run.model(x), want, atol=0.1, rtol=0.1, check_dtype=False)
    half = lorica.adapt(Stack().bfloat16(), Adalora(r=4))
    half(x).sum().backward()
    for adapter in attached(half, "default").adapters.values():
        assert adapter.e.dtype == adapter.e.grad.dtype == torch.float32


def test_peft_scores_and_prunes_alike():
    pytest.importorskip("peft")
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator

    run = Run(Adalora(r=6, target_r=3, beta1=0.8, beta2=0.9, **PHASES), 40)
    theirs = of_peft(run)
    config = AdaLoraConfig(init_r=6, target_r=3, beta1=0.8, beta2=0.9, total_step=40, **PHASES)
    allocator, pattern = RankAllocator(theirs, config, "default"), None
    masked = 0
    for t in range(1, 41):
        grads = {}

        def keep(t, grads=grads):
            grads.update({k: p.grad.clone() for k, p in run.tensors.items()})

        before = run.vectors("e")
        real, schedule = run.schedule.after_step, run.schedule
        after: dict[str, torch.Tensor] = {}

        def watched(t, after=after, real=real):
            after.update({k: p.detach().clone() for k, p in run.tensors.items()})
            real(t)

        schedule.after_step = watched  # the optimizer's numbers, before ours are masked
        run.step(keep)
        del schedule.after_step
        for site, layer in zip(run.adapters, theirs.children(), strict=True):
            for name, key in (("A", "a"), ("E", "e"), ("B", "b")):
                tensor = getattr(layer, f"lora_{name}")["default"]
                tensor.data.copy_(after[f"{site}.{key}"].view_as(tensor))
                tensor.grad = grads[f"{site}.{key}"].view_as(tensor)
        if t <= 30:
            _, found = allocator.update_and_allocate(theirs, t, force_mask=t == 30)
            pattern = found or pattern
        else:
            allocator.mask_using_rank_pattern(theirs, pattern)
        for site, layer in zip(run.adapters, theirs.children(), strict=True):
            want = layer.lora_E["default"].detach().flatten()
            assert torch.equal(run.adapters[site].e.detach(), want), (t, site)
        masked += zeros(run.vectors("e").values()) > zeros(before.values())
    assert masked > 3
    assert sum(run.schedule.ranks().values()) == 12
