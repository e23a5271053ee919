"""ALoRA: ranks are scored by ablation, and go to the sites that need them."""

import pytest
import torch

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.core.state import adapter_state
from lorica.methods.alora import Alora
from lorica.methods.alora.schedule import distributed, reallocated
from tests.laws.bases import Stack, move
from tests.methods.alora.driving import SHORT, Loop, loss_of, ranked
from tests.training.rows import same


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
