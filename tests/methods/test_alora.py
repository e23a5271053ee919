"""ALoRA: the start, AB-LoRA by brute force, the reallocation, and ranks that move in a run."""

import copy

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica import Driver, Lora
from lorica.core.bank import attached
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError
from lorica.methods.alora import Alora, AloraAdapter
from lorica.methods.alora.schedule import Allocation, distributed, reallocated
from tests.laws.bases import Stack, move
from tests.methods.llama import llama
from tests.training.rows import adapter as saved
from tests.training.rows import interrupt, same, settings

GOAL = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(11))
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(12))
SHORT = {"rounds": 3, "first_round": 4, "round_every": 3}


def loss_of(model: nn.Module) -> Tensor:
    return (model(X) - GOAL).square().mean()


def ranked(model: nn.Module) -> dict[str, AloraAdapter]:
    return attached(model, "default").adapters  # type: ignore[return-value]


class Loop:
    """Training as lorica.train does it, with AdamW, decay and momentum; `on` is a model."""

    def __init__(self, on: nn.Module, total: int, **options):
        self.model = on
        self.driver = Driver(on, total=total, **options)
        self.schedule: Allocation = self.driver.schedule  # type: ignore[assignment]
        self.schedule.probe = self.probe
        self.named = {k: t for k, t in adapter_state(on).items() if isinstance(t, nn.Parameter)}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=0.03, weight_decay=0.1)

    @torch.no_grad()
    def probe(self) -> float:
        return loss_of(self.model).item()

    def steps(self, n: int) -> None:
        for _ in range(n):
            loss_of(self.model).backward()
            self.driver.before_step()
            self.optimizer.step()
            self.driver.after_step()
            for name in self.schedule.fresh():
                self.optimizer.state.pop(self.named[name], None)
            self.optimizer.zero_grad()


def dead_parts(model: nn.Module) -> list[Tensor]:
    found = []
    for adapter in ranked(model).values():
        out = adapter.g == 0
        found += [adapter.a[out].detach(), adapter.b[:, out].detach()]
    return found


# -- the start --------------------------------------------------------------------------------


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


# -- AB-LoRA ----------------------------------------------------------------------------------


def test_scores_are_ablations():
    """S(r alone) - S(all but r), with S = -loss, from models that really lack the ranks."""
    model = move(lorica.adapt(Stack(), Alora(r=2, r_max=3)), size=0.5)
    loop = Loop(model, 100)
    got = loop.schedule.scores()
    assert [[*own] for own in got.values()] == [[0, 1]] * 4
    pure = {site: (a.a.detach().clone(), a.b.detach().clone()) for site, a in ranked(model).items()}

    def loss(keep) -> float:
        base = lorica.adapt(Stack(), Lora(r=2))
        for site, adapter in attached(base, "default").adapters.items():
            a, b = pure[site]
            kept = torch.tensor([float(keep(site, i)) for i in range(2)])
            with torch.no_grad():
                adapter.a.copy_(a[:2])  # type: ignore[union-attr, operator]
                adapter.b.copy_(b[:, :2] * kept)  # type: ignore[union-attr, operator]
        return loss_of(base).item()

    values = []
    for site in pure:
        for i in range(2):
            without = loss(lambda s, j, one=(site, i): (s, j) != one)
            alone = loss(lambda s, j, one=(site, i): (s, j) == one)
            assert got[site][i] == pytest.approx(-alone + without, abs=2e-6)
            values.append(got[site][i])
    assert len({round(v, 5) for v in values}) == 8, "the ranks can be told apart"


def test_a_rank_of_zeros_changes_nothing_when_it_is_left_out():
    model = move(lorica.adapt(Stack(), Alora(r=2)))
    site, adapter = next(iter(ranked(model).items()))
    with torch.no_grad():
        adapter.b[:, 1] = 0
    loop = Loop(model, 100)
    whole, base = loop.probe(), loss_of(Stack()).item()
    assert loop.schedule.scores()[site][1] == pytest.approx(whole - base)


def test_scoring_leaves_everything_as_it_was():
    model = move(lorica.adapt(Stack(), Alora(r=2)))
    loop = Loop(model, 100)
    before = {k: t.detach().clone() for k, t in adapter_state(model).items()}
    first = loop.schedule.scores()
    assert loop.schedule.scores() == first, "the same batch, the same scores"

    left = 3

    def breaks() -> float:
        nonlocal left
        left -= 1
        if not left:
            raise RuntimeError("the batch does not fit")
        return 1.0

    loop.schedule.probe = breaks
    with pytest.raises(RuntimeError):
        loop.schedule.scores()
    assert same(before, {k: t.detach() for k, t in adapter_state(model).items()})


def test_a_round_costs_two_probes_a_rank():
    loop, calls = Loop(lorica.adapt(Stack(), Alora(r=3)), 100), []
    loop.schedule.probe = lambda: float(calls.append(1) or 0)
    loop.schedule.scores()
    assert len(calls) == 2 * 3 * 4


def test_a_planted_harmful_rank_goes_in_the_first_round():
    model = lorica.adapt(Stack(), Alora(r=2, **SHORT))
    adapters = ranked(model)
    victim = "layers.1.up"
    loop = Loop(model, 20)
    loop.steps(3)
    with torch.no_grad():  # it turns the layer's output upside down
        weight = dict(model.named_modules())[victim].weight  # type: ignore[union-attr]
        u, s, v = torch.linalg.svd(weight, full_matrices=False)  # type: ignore[arg-type]
        adapters[victim].a[1] = v[0]
        adapters[victim].b[:, 1] = -5 * s[0] * u[:, 0]
    scores = loop.schedule.scores()
    lowest = min((score, site, i) for site, own in scores.items() for i, score in own.items())
    assert lowest[1:] == (victim, 1)
    loop.steps(1)
    assert adapters[victim].g.tolist()[1] == 0
    assert not adapters[victim].a[1].any() and not adapters[victim].b[:, 1].any()


# -- who gets what ----------------------------------------------------------------------------


def test_eight_ranks_for_three_sites():
    means, room = {"x": 0.9, "y": 0.5, "z": 0.7}, {"x": 9, "y": 9, "z": 9, "w": 9}
    assert distributed(8, means, room) == {"x": 3, "y": 2, "z": 3}
    assert distributed(7, means, room) == {"x": 3, "y": 2, "z": 2}
    assert distributed(2, means, room) == {"x": 1, "z": 1}
    assert distributed(8, means, {**room, "x": 1}) == {"x": 1, "y": 3, "z": 4}
    assert distributed(3, {"p": -1.0, "q": -1.0}, {"p": 9, "q": 9}) == {"p": 2, "q": 1}


def test_the_lowest_go_and_the_untouched_share_them():
    scores = {"x": {0: 0.9, 2: 0.8}, "y": {0: 0.1, 1: 0.2}, "z": {1: 0.5, 3: 0.05}}
    pruned, gains = reallocated(scores, {"x": 9, "y": 9, "z": 9})
    assert sorted(pruned) == [("y", 0), ("y", 1), ("z", 3)]
    assert gains == {"x": 3}


def test_fewer_move_where_the_untouched_lack_room():
    scores = {"x": {0: 0.9, 2: 0.8}, "y": {0: 0.1, 1: 0.2}, "z": {1: 0.5, 3: 0.05}}
    pruned, gains = reallocated(scores, {"x": 2, "y": 9, "z": 9})
    assert (pruned, gains) == ([("z", 3), ("y", 0)], {"x": 2})
    assert reallocated(scores, dict.fromkeys("xyz", 0)) == ([], {})
    one = {"x": {0: 0.1, 1: 1.0}, "y": {0: 0.2, 1: 1.1}}
    assert reallocated(one, {"x": 5, "y": 5}) == ([("x", 0)], {"y": 1}), "not one from each"
    assert reallocated({"x": {0: 0.1}}, {"x": 5}) == ([], {}), "a lone site keeps its ranks"


def test_a_site_without_ranks_comes_last_and_may_come_back():
    scores = {"x": {0: -9.0, 1: -8.0, 2: -7.0}, "z": {}, "w": {0: -1.0}}
    pruned, gains = reallocated(scores, dict.fromkeys("xzw", 4))
    assert pruned == [("x", 0), ("x", 1), ("x", 2)], "a site may lose all"
    assert gains == {"w": 2, "z": 1}


# -- a run ------------------------------------------------------------------------------------


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
    assert sum(ranks.values()) == 2 * len(ranks) == 20 and set(ranks.values()) != {2}
    held_out = whole.figures["held_out_loss"]
    assert held_out["after"] < held_out["before"]
    for at in (2, 5):  # before the round, and after it
        cut = settings(small_base, tmp_path / f"b{at}", **run)
        interrupt(monkeypatch, at, **cut)
        again = lorica.train(resume=cut["output"], show=False)
        assert same(saved(whole.folder), saved(again.folder))
        assert again.figures["ranks"] == ranks


# -- settings ---------------------------------------------------------------------------------


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
