"""What adapters draw follows from a seed and the site, and leaves torch's generator alone."""

import torch

import lorica
from lorica.base.load import load
from lorica.core.attach import routed
from lorica.core.draws import drawing, site_seed
from lorica.core.route import Everywhere


def drawn(*seed_and_site) -> float:
    with drawing(site_seed(*seed_and_site)):
        return float(torch.rand(()))


def test_seed_pass_and_site_each_change_what_is_drawn():
    asked = [((0, 0), "a"), ((1, 0), "a"), ((0, 1), "a"), ((0, 0), "b")]
    results = [drawn(*case) for case in asked]
    assert len(set(results)) == 4
    assert results == [drawn(*case) for case in asked]


def test_a_seed_draws_what_manual_seed_draws():
    for seed in (0, 7, 2**40 + 1, -1):
        torch.manual_seed(seed)
        wanted = torch.rand(3)
        with drawing(seed):
            assert torch.equal(torch.rand(3), wanted)


def test_the_generator_goes_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    first = torch.rand(1)
    drawn((0, 0), "a")
    assert torch.equal(torch.cat([first, torch.rand(2)]), wanted)


def test_dropout_is_seeded_inside_the_block_alone():
    """Outside it no two forward passes drop the same; inside, they do."""
    torch.manual_seed(0)
    model = lorica.adapt(
        torch.nn.Sequential(torch.nn.Linear(64, 64)), lorica.Lora(r=4, dropout=0.5)
    )
    torch.nn.init.normal_(model[0].adapters["default"].b)
    x = torch.randn(1, 8, 64)
    free = [model(x) for _ in range(2)]
    with routed(model, Everywhere.of(["default"], (3, 0))):
        bound = [model(x) for _ in range(2)]
    assert not torch.equal(*free)
    assert torch.equal(*bound)
    assert not torch.equal(model(x), model(x))


def test_adapting_and_loading_seed_no_other_device(monkeypatch):
    """torch.manual_seed would, and what restores the CPU's generator restores no other."""
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    torch.manual_seed(0)
    assert asked == [0]  # so this is how it would be noticed
    lorica.adapt(load("bundled").model, lorica.Lora(r=2), seed=3)
    assert asked == [0]
