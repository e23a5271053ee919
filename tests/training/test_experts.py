"""Runs that adapt the experts of a mixture: trained, merged, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lorica
from lorica.base.load import load
from lorica.core.bank import adapted_layers
from lorica.errors import ConfigError, TargetError
from tests.base.architectures import write
from tests.training.rows import settings

IDS = torch.tensor([[5, 9, 33, 70, 12]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("base"), "qwen3_moe")


def experts(base: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    return settings(base, folder, target_parameters="experts", max_steps=4, **changed)


SLOW = pytest.param(False, marks=pytest.mark.slow)


@pytest.mark.parametrize("checkpointing", [True, SLOW])
def test_experts_are_trained_and_merged(base, checkpointing, tmp_path):
    whole = lorica.train(
        **experts(base, tmp_path, gradient_checkpointing=checkpointing), show=False
    )
    assert not any("experts are not adapted" in notice for notice in whole.notices)
    assert any("load-balancing loss is not added" in notice for notice in whole.notices)
    model = load(str(base)).model
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        lorica.load(model, whole.folder)
        want = model(input_ids=IDS).logits
        assert len([n for n, _, _ in adapted_layers(model) if ".experts." in n]) == 4
        assert (want - plain).abs().max() > 1e-3
        lorica.merge(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)


def test_the_default_leaves_experts_out_and_says_so(base, tmp_path):
    done = lorica.train(**settings(base, tmp_path, max_steps=1), show=False)
    (notice,) = [n for n in done.notices if "experts are not adapted" in n]
    assert "target_parameters: experts adapts them" in notice


def test_what_is_not_defined_is_refused_by_name(base, tmp_path):
    with pytest.raises(TargetError, match="on which mora is not defined"):
        lorica.train(**experts(base, tmp_path, method={"name": "mora"}), show=False)
    runs = [experts(base, tmp_path, output=str(tmp_path / name)) for name in "ab"]
    with pytest.raises(ConfigError, match=r"experts model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        lorica.train_each(runs, show=False)
