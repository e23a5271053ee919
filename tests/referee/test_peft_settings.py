"""Settings of PEFT that we do not know are refused, all of them at once; folders by any name."""

import json
from pathlib import Path

import pytest

import lorica
from lorica import Lora
from lorica.core.bank import adapted_layers
from lorica.errors import FileError
from tests.laws.bases import Stack, gpt2, move, small_llama

UNKNOWN = {
    "bias": "lora_only",
    "layer_replication": [[0, 1]],
    "arrow_config": {"top_k": 2},
    "alora_invocation_tokens": [1, 2],
    "a_new_setting": True,
    "megatron_config": {"a": 1},
    "use_bdlora": {"x": 1},
    "init_lora_weights": "pissa_niter_4",
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_a_setting_that_changes_the_result_and_is_unknown_is_refused(key, tmp_path):
    lorica.save(move(lorica.adapt(Stack(), Lora())), tmp_path / "adapter")
    (tmp_path / "adapter/manifest.json").unlink()
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: UNKNOWN[key]}))
    model = Stack()
    with pytest.raises(FileError, match=key):
        lorica.load(model, tmp_path / "adapter")
    assert not list(adapted_layers(model))


def test_several_that_are_unknown_are_named_together(tmp_path):
    lorica.save(move(lorica.adapt(Stack(), Lora())), tmp_path / "adapter")
    (tmp_path / "adapter/manifest.json").unlink()
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "x_new": 1, "y_new": 2}))
    with pytest.raises(FileError, match=r"x_new 1, y_new 2"):
        lorica.load(Stack(), tmp_path / "adapter")


def test_a_folder_is_named_by_its_path_or_as_text(tmp_path):
    lorica.save(move(lorica.adapt(Stack(), Lora())), str(tmp_path / "a" / "deep" / "adapter"))
    assert lorica.load(Stack(), Path(tmp_path) / "a/deep/adapter") == []


@pytest.mark.parametrize(
    "make, targets, transposed",
    [
        (gpt2, ["c_attn"], True),
        (gpt2, ["wte"], False),
        (small_llama, ["q_proj", "embed_tokens"], False),
    ],
)
def test_the_layout_of_the_weight_is_noted(make, targets, transposed, tmp_path):
    """PEFT mends a wrong one by itself, with a warning; other readers may not."""
    path = lorica.save(lorica.adapt(make(), Lora(), target_modules=targets), tmp_path / "adapter")
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is transposed
