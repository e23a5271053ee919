"""Sizes in config.json that are no sizes, and weights whose headers lie."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorica import cli
from lorica.base.quantise import KINDS
from lorica.errors import BaseError, FileError, ResourceError
from lorica.plan.families import FAMILIES
from lorica.plan.shapes import QUANTISED, read_shapes
from tests.plan.planned import LLAMA_7B, write_base, write_rows

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
NO_SIZES = ["x", "8", [1], {}, True, float("nan"), 0, -5, 1e30, 8.0, 10**9 * 5]
REQUIRED = [
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
]
OPTIONAL = ["num_key_value_heads", "head_dim", "max_position_embeddings"]


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize("field", REQUIRED + OPTIONAL)
def test_no_size_is_taken_that_is_none(tmp_path, field, value):
    for config in ({field: value}, {"text_config": {field: value}}):
        base = write_base(tmp_path / "base", **config)
        with pytest.raises(BaseError, match=rf"config\.json of .* states {field} as ") as caught:
            read_shapes(base)
        assert repr(value)[:20] in str(caught.value) and caught.value.fix
        read_shapes.cache_clear()


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize("field", ["n_embd", "n_layer", "n_head", "n_inner", "n_positions"])
def test_nor_in_the_names_of_gpt2(tmp_path, field, value):
    base = write_base(tmp_path / "base", **{**GPT2, "model_type": "gpt2", field: value})
    with pytest.raises(BaseError, match=rf"states {field} as "):
        read_shapes(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_may_be_null_only_where_there_is_a_default(tmp_path, family):
    optional = ["n_inner", "n_positions"] if family == "gpt2" else OPTIONAL
    given = {**(GPT2 if family == "gpt2" else {}), "model_type": family}
    base = write_base(tmp_path / "base", **given, **dict.fromkeys(optional))
    assert read_shapes(base).parameters > 0
    needed = ["n_embd", "n_layer", "n_head"] if family == "gpt2" else REQUIRED
    for field in needed:
        read_shapes.cache_clear()
        write_base(tmp_path / "base", **{**given, field: None})
        with pytest.raises(BaseError, match=f"states {field} as nothing"):
            read_shapes(base)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_key_value_heads": 5}, "num_key_value_heads as 5: it must be a divisor"),
        ({"num_attention_heads": 30}, "hidden_size as 4096: it must be a multiple"),
        ({"text_config": [1]}, r"text_config as \[1\]: it must be an object"),
        ({"quantization_config": "nf4"}, "quantization_config as 'nf4': it must be an object"),
        ({"model_type": ["llama"]}, r"model_type as \['llama'\]: it must be a name"),
    ],
)
def test_sizes_that_do_not_agree_and_fields_of_another_kind(tmp_path, config, words):
    with pytest.raises(BaseError, match=words):
        read_shapes(write_base(tmp_path / "base", **config))


def test_the_command_names_the_config_and_not_the_rows(tmp_path, capsys):
    base = write_base(tmp_path / "base", max_position_embeddings=-5)
    rows = write_rows(tmp_path / "rows.jsonl")
    assert cli.run(["plan", "--base", base, "--data", rows]) == 2
    assert "max_position_embeddings as -5" in capsys.readouterr().err


def with_weights(folder):
    """A base of which the weights are there, and are those of its config."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    base = write_base(folder, **small, num_attention_heads=4)
    (folder / "tokenizer.json").write_text("{}")
    tensors = {
        f"{site.name}.weight": np.zeros((site.outputs, site.inputs) if site.outputs else 32)
        for site in read_shapes(base).sites
        if site.parameters
    }
    save_file(tensors, folder / "model.safetensors")
    read_shapes.cache_clear()
    return base, folder / "model.safetensors"


def parts(file):
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def test_whole_weights_are_read(tmp_path):
    base, _ = with_weights(tmp_path / "base")
    assert not read_shapes(base).notices


@pytest.mark.parametrize(
    "change",
    [
        {"shape": "xx"},
        {"shape": None},
        {"shape": [-2, -16]},
        {"shape": [10**30, 1]},
        {"shape": [True]},
        {"data_offsets": [0]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 10**30]},
        {"dtype": 5},
        "no tensor",
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(tmp_path, change):
    base, file = with_weights(tmp_path / "base")
    header, body = parts(file)
    entry = header["model.norm.weight"]
    header["model.norm.weight"] = {**entry, **change} if isinstance(change, dict) else change
    data = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + body)
    with pytest.raises(FileError, match=r"is damaged: its header gives the tensor .model\.norm"):
        read_shapes(base)


def test_a_header_without_a_shape(tmp_path):
    base, file = with_weights(tmp_path / "base")
    header, body = parts(file)
    del header["model.norm.weight"]["shape"]
    data = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + body)
    with pytest.raises(FileError, match="no shape"):
        read_shapes(base)


def test_weights_that_are_cut_short_or_empty_are_refused(tmp_path):
    base, file = with_weights(tmp_path / "base")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"its tensors take .* bytes, and it has "):
        read_shapes(base)
    file.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(FileError, match="no tensor is in "):
        read_shapes(base)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_to_itself_is_refused(tmp_path, name):
    base, file = with_weights(tmp_path / "base")
    (path := file.with_name(name)).unlink()
    path.symlink_to(path)
    with pytest.raises(FileError, match="is a link, not a regular file"):
        read_shapes(base)


def test_a_config_that_is_a_link_to_itself_without_weights(tmp_path):
    base = write_base(tmp_path / "base")
    (path := tmp_path / "base/config.json").unlink()
    path.symlink_to(path)
    with pytest.raises(ResourceError, match=r"config\.json cannot be read: Too many"):
        read_shapes(base)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", ""])
def test_a_base_that_train_cannot_load_is_not_planned(tmp_path, method):
    base = write_base(tmp_path / "base", quantization_config={"quant_method": method})
    with pytest.raises(BaseError, match=r"is quantised with .*, and cannot be loaded here"):
        read_shapes(base)


def test_what_can_be_loaded_quantised_is_planned(tmp_path):
    assert set(QUANTISED) == set(KINDS)
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert read_shapes(write_base(tmp_path / "a", quantization_config=four)).quantised == "fp4"
    assert LLAMA_7B["hidden_size"] == read_shapes(write_base(tmp_path / "b")).hidden
