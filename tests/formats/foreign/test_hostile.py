"""Whatever stands in the settings of a foreign folder, it is read or refused by name."""

import json
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lorica
from lorica.core.bank import adapted_layers
from lorica.errors import FileError, LoricaError
from lorica.formats.adapter_file import read
from tests.formats.foreign import folders
from tests.formats.foreign.folders import CASES, write

VALUES = (None, True, -1, 0, 10**15, 1e300, "8", "", [], [1], {}, {"a": 1}, [[None]])
FILES = {
    "PEFT 0.3": "adapter_config.json",
    "shards": "adapter_model.safetensors.index.json",
    "mlx-lm": "adapter_config.json",
    "LitGPT": "hyperparameters.yaml",
    "LitGPT 0.4": "model_config.yaml",
    "torchtune, DoRA": "adapter_config.json",
    "torchtune, exported": "adapter_config.json",
}


def places(value: Any, place: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*place, k), *places(v, (*place, k))]]
    return []


def variants(settings: dict) -> list[dict]:
    """The settings with each value changed, one at a time, and each key left out."""
    changes = []
    for place in places(settings)[:40]:
        for value in (*VALUES, "absent"):
            copy = json.loads(json.dumps(settings))
            inner = copy
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            if value == "absent":
                del inner[place[-1]]
            changes.append(copy)
    return changes


@pytest.mark.parametrize("name", FILES)
def test_no_value_of_a_setting_is_an_error_of_another_kind(name, small_base, tmp_path):
    CASES[name].write(tmp_path)
    path = tmp_path / FILES[name]
    is_yaml = path.suffix == ".yaml"
    settings = yaml.safe_load(path.read_text()) if is_yaml else json.loads(path.read_text())
    refused = 0
    for variant in variants(settings):
        path.write_text(yaml.safe_dump(variant) if is_yaml else json.dumps(variant))
        try:
            read(tmp_path)
        except LoricaError as error:
            refused += 1
            assert isinstance(error, FileError) and error.fix, variant
    assert refused > 10


def test_a_number_that_moves_the_result_is_never_passed_over(small_base, tmp_path):
    """Another rank in the settings is refused; another scale gives other logits."""
    folders.litgpt(tmp_path)
    path = tmp_path / "hyperparameters.yaml"
    text = path.read_text()
    path.write_text(text.replace("lora_r: 4", "lora_r: 8"))
    with pytest.raises(FileError, match=r"rank|sizes"):
        read(tmp_path)
    path.write_text(text.replace("lora_alpha: 6", "lora_alpha: 12"))
    assert read(tmp_path).config["lora_alpha"] == 12


def test_a_link_and_yaml_that_builds_objects_are_not_followed(tmp_path):
    folders.litgpt(tmp_path / "adapter")
    path = tmp_path / "adapter/hyperparameters.yaml"
    path.write_text("lora_r: !!python/object/apply:os.system ['true']\nlora_alpha: 6\n")
    with pytest.raises(FileError, match="lora_r"):
        read(tmp_path / "adapter")
    (tmp_path / "elsewhere.yaml").write_text(folders.HYPERPARAMETERS.format(q=True, k=True))
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(FileError, match="is a link"):
        read(tmp_path / "adapter")


def test_a_tensor_too_many_or_too_few_leaves_the_model_as_it_was(small_base, tmp_path):
    for name, file in (("mlx-lm", "adapters.safetensors"), ("shards", None)):
        CASES[name].write(tmp_path / name)
        file = file or "adapter_model-00001-of-00002.safetensors"
        tensors = load_file(tmp_path / name / file)
        tensors = {k.replace("layers.1", "layers.7"): t for k, t in tensors.items()}
        write(tmp_path / name, {file: tensors})
        model = AutoModelForCausalLM.from_pretrained(small_base)
        with pytest.raises(LoricaError):
            lorica.load(model, tmp_path / name)
        assert not list(adapted_layers(model))


def test_shapes_that_fit_no_head_are_an_error_about_files(small_base, tmp_path):
    """Rows are permuted by head before their shapes are compared with the base's."""
    model = AutoModelForCausalLM.from_pretrained(small_base)
    folders.torchtune(tmp_path / "tune")
    path = tmp_path / "tune/adapter_0.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("q_proj.lora_b.weight"))
    save_file({**tensors, key: tensors[key][:-1].contiguous()}, path)
    with pytest.raises(FileError):
        lorica.load(model, tmp_path / "tune")
    folders.litgpt_old(tmp_path / "lit")
    sizes = tmp_path / "lit/model_config.yaml"
    sizes.write_text(yaml.safe_dump({**yaml.safe_load(sizes.read_text()), "n_head": 3}))
    with pytest.raises(FileError, match="no multiple of n_query_groups"):
        read(tmp_path / "lit")


def test_expert_parameters_that_are_no_list(small_base, tmp_path):
    folders.peft_named(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_parameters": 3}))
    with pytest.raises(FileError, match="target_parameters is 3"):
        read(tmp_path)
