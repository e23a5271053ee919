"""The diagnostic of DoRA's paper: how training changes the direction and magnitude of rows."""

import math

import pytest
import torch

import lorica
from lorica import Dora, Lora
from lorica.base.load import load
from lorica.core.bank import adapted_layers
from lorica.errors import ConfigError
from lorica.evaluation.weight_changes import (
    WeightChange,
    correlation,
    weight_change,
    weight_changes,
)
from tests.laws.bases import Stack, move


def test_by_hand():
    """The example of DoRA's paper: the rows keep their norms, 5 and 2."""
    before = torch.tensor([[3.0, 4], [0, 2]])
    after = torch.tensor([[3.5355339, 3.5355339], [0.8944272, 1.7888544]])
    change = weight_change("layer", before, after)
    assert change.magnitude == pytest.approx(0, abs=1e-6)
    expected = (2 - 28 / math.sqrt(800) - 4 / math.sqrt(20)) / 2
    assert change.direction == pytest.approx(expected, rel=1e-6)
    assert weight_change("layer", before, 3 * before) == WeightChange("layer", 7.0, 0.0)
    assert weight_change("layer", before, -before).direction == pytest.approx(2)
    zero_row = torch.tensor([[0.0, 0], [0, 2]])
    new_row = torch.tensor([[1.0, 0], [0, 2]])
    assert weight_change("layer", zero_row, new_row) == WeightChange("layer", 0.5, 0.0)


def test_a_fresh_adapter_changes_nothing():
    for change in weight_changes(lorica.adapt(Stack(), Dora(r=2))):
        assert change.direction < 1e-9 and change.magnitude < 1e-6


@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_dora_changes_magnitude_and_direction_separately(small_base, quantisation):
    def adapted():
        base = load(str(small_base), quantisation=quantisation)
        return lorica.adapt(base.model, Dora(r=2))

    model = adapted()
    with torch.no_grad():
        for _, _, adapters in adapted_layers(model):
            adapters["default"].m.mul_(1.5)
    norms = {
        name: adapters["default"].m.mean().item() for name, _, adapters in adapted_layers(model)
    }
    changes = weight_changes(model)
    assert [change.site for change in changes] == list(norms)
    for change in changes:
        assert change.magnitude == pytest.approx(norms[change.site] / 3, rel=1e-3)
        assert change.direction < 1e-6
    model = adapted()
    with torch.no_grad():
        for _, _, adapters in adapted_layers(model):
            adapters["default"].b.normal_()
    for change in weight_changes(model):
        assert change.magnitude < 1e-4
        assert change.direction > 1e-3


def test_the_changes_of_one_adapter_of_several():
    model = move(lorica.adapt(Stack(), Lora(r=2), name="first"))
    lorica.adapt(model, Lora(r=2), name="second")
    assert max(change.direction for change in weight_changes(model, "first")) > 1e-3
    assert max(change.direction for change in weight_changes(model, "second")) < 1e-12
    with pytest.raises(ConfigError, match="'third'"):
        weight_changes(model, "third")


def test_correlation():
    changes = [WeightChange(str(i), 2.0 - 0.1 * i, 0.01 * i) for i in range(5)]
    assert correlation(changes) == pytest.approx(-1)
    table = torch.tensor([[0, 0.01, 0.02, 0.03, 0.04, 1], [2, 1.9, 1.8, 1.7, 1.6, 9]])
    expected = torch.corrcoef(table)[0, 1].item()
    assert correlation([*changes, WeightChange("x", 9.0, 1.0)]) == pytest.approx(expected, rel=1e-5)
    assert correlation(changes[:1]) is None
    constant = [WeightChange("x", 1.0, 0.1), WeightChange("y", 1.0, 0.2)]
    assert correlation(constant) is None


def test_an_adapter_that_changes_no_weight_is_refused():
    embedding = torch.nn.Sequential(torch.nn.Embedding(9, 4))
    model = lorica.adapt(embedding, Lora(r=2), target_modules="all")
    with pytest.raises(ConfigError, match="no weight of a linear layer"):
        weight_changes(model)
