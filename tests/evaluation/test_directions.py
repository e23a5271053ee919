"""The diagnostic of DoRA's paper: turned rows, and rows that changed their size."""

import math

import pytest
import torch

import lorica
from lorica import Dora, Lora
from lorica.core.port import ports
from lorica.errors import ConfigError
from lorica.evaluation.directions import Turn, correlation, turn, turns
from tests.laws.bases import Stack, move, stories, stories_nf4


def test_by_hand():
    """DoRA's vector: the rows keep their sizes, 5 and 2; cosines 28 / sqrt 800, 4 / sqrt 20."""
    before = torch.tensor([[3.0, 4], [0, 2]])
    after = torch.tensor([[3.5355339, 3.5355339], [0.8944272, 1.7888544]])
    found = turn("layer", before, after)
    assert found.magnitude == pytest.approx(0, abs=1e-6)
    want = (2 - 28 / math.sqrt(800) - 4 / math.sqrt(20)) / 2
    assert found.direction == pytest.approx(want, rel=1e-6)
    assert turn("layer", before, 3 * before) == Turn("layer", 7.0, 0.0)
    assert turn("layer", before, -before).direction == pytest.approx(2)
    rows = torch.tensor([[0.0, 0], [0, 2]])
    assert turn("layer", rows, torch.tensor([[1.0, 0], [0, 2]])) == Turn("layer", 0.5, 0.0)


def test_a_fresh_adapter_has_turned_nothing():
    for found in turns(lorica.adapt(Stack(), Dora(r=2))):
        assert found.direction < 1e-9 and found.magnitude < 1e-6


@pytest.mark.parametrize("make", [stories, stories_nf4])
def test_dora_can_turn_without_growing_and_grow_without_turning(make):
    model = lorica.adapt(make(), Dora(r=2))
    with torch.no_grad():
        for _, _, port in ports(model):
            port["default"].m.mul_(1.5)
    sizes = {n: p["default"].m.mean().item() for n, _, p in ports(model)}
    grown = turns(model)
    assert [t.site for t in grown] == list(sizes)
    for found in grown:
        assert found.magnitude == pytest.approx(sizes[found.site] / 3, rel=1e-3)
        assert found.direction < 1e-6
    model = lorica.adapt(make(), Dora(r=2))
    with torch.no_grad():
        for _, _, port in ports(model):
            port["default"].b.normal_()
    for found in turns(model):
        assert found.magnitude < 1e-4
        assert found.direction > 1e-3


def test_of_a_named_adapter_alone():
    model = move(lorica.adapt(Stack(), Lora(r=2), name="one"))
    lorica.adapt(model, Lora(r=2), name="two")
    assert max(t.direction for t in turns(model, "one")) > 1e-3
    assert max(t.direction for t in turns(model, "two")) < 1e-12
    with pytest.raises(ConfigError, match="'three'"):
        turns(model, "three")


def test_correlation():
    line = [Turn(str(i), 2.0 - 0.1 * i, 0.01 * i) for i in range(5)]
    assert correlation(line) == pytest.approx(-1)
    assert correlation([*line, Turn("x", 9.0, 1.0)]) == pytest.approx(
        torch.corrcoef(torch.tensor([[0, 0.01, 0.02, 0.03, 0.04, 1], [2, 1.9, 1.8, 1.7, 1.6, 9]]))[
            0, 1
        ].item(),
        rel=1e-5,
    )
    assert correlation(line[:1]) is None
    assert correlation([Turn("x", 1.0, 0.1), Turn("y", 1.0, 0.2)]) is None


def test_what_changes_no_weight_is_refused():
    model = lorica.adapt(
        torch.nn.Sequential(torch.nn.Embedding(9, 4)), Lora(r=2), target_modules="all"
    )
    with pytest.raises(ConfigError, match="no weight of a linear layer"):
        turns(model)
