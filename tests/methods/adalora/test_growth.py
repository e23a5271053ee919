"""AdaLoRA, mode increase: ranks grow where the loss depends on them."""

import pytest
import torch
from torch import nn

from lorica.methods.adalora import Adalora
from lorica.methods.adalora.schedule import WARM_UP, Increase
from tests.methods.adalora.driving import PHASES, scheduled
from tests.methods.driving import Run


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
