"""Methods of PEFT other than LoRA: files and settings that are refused or not written."""

import json

import pytest

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers
from lorica.errors import FileError
from tests.laws.bases import Stack, small_llama
from tests.referee.other_cases import with_peft_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix


@pytest.mark.parametrize("method", ["adalora", "vera"])
def test_a_rank_pattern_is_not_written_for_peft(method, tmp_path):
    model = lorica.adapt(small_llama(), Method.named(method)(r=4), rank_pattern={"q_proj": 2})
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


@pytest.mark.parametrize("method", ["vera", "ia3"])
def test_trainable_tokens_are_not_written_for_peft(method, tmp_path):
    model = lorica.adapt(small_llama(), Method.named(method)(), trainable_token_indices=[5])
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


def test_a_method_that_extends_lora_is_not_written_as_lora(tmp_path):
    model = lorica.adapt(small_llama(), Method.named("lora_fa")(r=2))
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


UNKNOWN = [
    ("adalora", {"use_dora": True}),
    ("adalora", {"bias": "all"}),
    ("adalora", {"lora_bias": True}),
    ("adalora", {"target_parameters": ["x"]}),
    ("vera", {"bias": "vera_only"}),
    ("vera", {"a_new_setting": 3}),
    ("ia3", {"a_new_setting": 3}),
    ("ia3", {"target_modules": []}),
    ("prefix", {"a_new_setting": 3}),
    ("prompt", {"prompt_tuning_x": "y"}),
    ("p-tuning", {"a_new_setting": [1]}),
    ("vera", {"trainable_token_indices": None, "x_new": {"a": 1}}),
]


@pytest.mark.parametrize("case, change", UNKNOWN)
def test_unknown_settings_are_refused(case, change, tmp_path):
    with_peft_adapter(case).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    model = small_llama()
    with pytest.raises(FileError, match=list(change)[-1]):
        lorica.load(model, tmp_path)
    assert not list(adapted_layers(model))


def test_an_unsupported_peft_type_is_refused(tmp_path):
    from peft import OFTConfig, get_peft_model

    config = OFTConfig(target_modules=["up"], oft_block_size=4, r=0)
    get_peft_model(Stack(), config).save_pretrained(str(tmp_path))
    with pytest.raises(FileError, match="OFT") as error:
        lorica.load(Stack(), tmp_path)
    assert "ADALORA" in error.value.facts["known"]


@pytest.mark.parametrize("case", ["adalora", "vera", "ia3"])
def test_a_missing_or_extra_tensor_is_named(case, tmp_path):
    from safetensors.torch import load_file, save_file

    with_peft_adapter(case).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "layers.0" in k)
    save_file({k: t for k, t in tensors.items() if k != key}, file)
    with pytest.raises(FileError, match="does not fit") as error:
        lorica.load(small_llama(), tmp_path)
    assert "layers.0" in error.value.facts["missing"]
    save_file({**tensors, f"{key}_x": tensors[key].clone()}, file)
    with pytest.raises(FileError, match="does not fit") as error:
        lorica.load(small_llama(), tmp_path)
    assert f"{key}_x" in error.value.facts["extra"]
    save_file({**tensors, key: tensors[key].repeat(2, *([1] * (tensors[key].ndim - 1)))}, file)
    with pytest.raises(FileError, match=r"layers\.0"):
        lorica.load(small_llama(), tmp_path)


def test_heads_of_another_shape_are_refused(tmp_path):
    """The table has as many numbers; what they mean is something else."""
    with_peft_adapter("prefix").save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 2}))
    with pytest.raises(FileError, match="other attention heads") as error:
        lorica.load(small_llama(), tmp_path)
    assert error.value.facts["base"] == "4 heads of 8"


def test_an_encoder_and_a_decoder_are_refused(tmp_path):
    with_peft_adapter("prompt").save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_transformer_submodules": 2}))
    with pytest.raises(FileError, match="an encoder and a decoder"):
        lorica.load(small_llama(), tmp_path)
