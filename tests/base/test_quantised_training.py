"""Training on a quantised base, and weights that are kept dequantised."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.footprint import footprint, quantised_layers
from lorica.base.load import load
from lorica.base.quantised_model import store_dequantised_layers
from lorica.errors import ConfigError
from lorica.formats.open_adapter import open_adapter
from lorica.training.config import TrainConfig
from tests.base.quantised_bases import logits
from tests.laws.bases import IDS, move


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"double_quantisation": False}, "has an effect only with"),
        ({"double_quantisation": False, "quantisation": "int8"}, "has an effect only with"),
        ({"quantisation": "nf4", "method": "full"}, "float weights"),
        ({"quantisation": "nf3"}, "nf4"),
        ({"unpacked_gib": -1.0}, "unpacked_gib"),
        ({"unpacked_gib": 1.0, "split": "device", "peer": "a:1"}, "a quantised base"),
    ],
)
def test_settings_that_clash(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(data="rows.jsonl", **settings)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    logits = model(IDS, use_cache=False).logits
    grads = torch.autograd.grad(
        logits.float().sin().sum(), [p for p in model.parameters() if p.requires_grad]
    )
    return [logits.detach(), *grads]


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("nf4", "bfloat16"),
        ("int8", "float32"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                ("nf4", "float32"),
                ("int8", "bfloat16"),
                ("fp4", "float32"),
                ("fp4", "bfloat16"),
            ]
        ),
    ],
)
def test_weights_that_are_kept_dequantised_give_the_same_numbers(kind, dtype, story_base):
    models = [load(str(story_base), quantisation=kind, dtype=dtype).model for _ in range(2)]
    line = store_dequantised_layers(models[1], 2**20)
    assert line.startswith("the weights of 35 of 35 quantised layers")
    for model in models:
        move(lorica.adapt(model, Lora(r=4)))
    assert all(map(torch.equal, *map(gradients, models)))
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
    held = footprint(models[1]).bytes - footprint(models[0]).bytes
    assert f"in {held:,} bytes" in line
    assert footprint(models[1]).parameters == footprint(models[0]).parameters
    moved = [copy.deepcopy(model).to(torch.float64) for model in models]
    assert torch.equal(*map(logits, moved)), "another dtype is unpacked anew"
    for model in models:
        lorica.merge(model)
    assert torch.equal(*map(logits, models))


def test_weights_that_are_kept_dequantised_stay_within_their_memory(story_base):
    model = load(str(story_base), quantisation="nf4").model
    packed = list(quantised_layers(model).values())
    first = 4 * packed[0].in_features * packed[0].out_features
    line = store_dequantised_layers(model, first + 100)
    assert "of 1 of 35" in line and f"{first:,} bytes" in line
    assert [layer.dequantised is not None for layer in packed] == [True] + [False] * 34
    before = packed[0].dequantised.clone()
    lorica.merge(move(lorica.adapt(model, Lora(r=4))))
    assert torch.equal(packed[0].dequantised, before), "merging read it, and wrote elsewhere"
    with pytest.raises(ConfigError, match="not quantised") as error:
        store_dequantised_layers(load(str(story_base)).model, 2**20)
    assert "nf4" in error.value.fix


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Tom has {n}", "completion": " red cats."} for n in range(24)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_run_on_a_quantised_base(kind, story_base, rows, tmp_path):
    settings = {
        "base": str(story_base),
        "data": {"path": str(rows), "validation": 0.2},
        "quantisation": kind,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "unpacked_gib": 1e-4,
    }
    result = lorica.train(output=str(tmp_path / "run"), **settings, show=False)
    loss = result.figures["held_out_loss"]
    assert loss["after"] < loss["before"] - 0.1
    base = result.figures["base"]
    assert (base["quantisation"], base["packed"]) == (kind, 35)
    assert base["bytes"] < base["bytes_in_bfloat16"]
    assert (4 if kind == "nf4" else 8) < base["bits_per_parameter"] < (5 if kind == "nf4" else 9)
    trained, total = (result.figures["parameters"][key] for key in ("trained", "total"))
    assert (trained, total) == (46_240, 260_032)
    assert result.notices[0].startswith(kind)
    assert sum("stored dequantised" in line for line in result.notices) == 1
    shutil.rmtree(tmp_path / "run/adapter")
    for path in sorted((tmp_path / "run/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    again = lorica.train(resume=tmp_path / "run", show=False)
    assert again.figures["held_out_loss"] == loss, "a resumed run packs the same bits"
    assert quantised_layers(open_adapter(tmp_path / "run").model)


def test_a_run_without_validation_is_not_quantised_by_default(story_base, rows, tmp_path):
    result = lorica.train(
        base=str(story_base), data=str(rows), max_steps=1, output=str(tmp_path / "run"), show=False
    )
    assert result.figures["base"]["quantisation"] is None
    assert result.figures["base"]["bytes"] == 4 * 260_032
