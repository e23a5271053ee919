"""Models as GGUF: every tensor and setting read back, and what differs in llama.cpp refused."""

import json
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.runtimes import tiny_models
from lorica.base import checkpoint_tensors
from lorica.errors import BaseError, FileError, MergeError, MissingError
from lorica.handover.gguf.model import write_model
from tests.handover.gguf.read_back import read, rows_in_order, types

BITS = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}
"""Largest rounding of a number, as a share of it."""
TINY = 2.0**-25
"""Half the smallest number of float16."""


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tiny_models.write(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


def edited(base, folder, **settings):
    """A copy of a base with settings of its config changed."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_each_tensor_of_a_llama_is_the_source_within_its_dtype(dtype, base_of, tmp_path):
    base = base_of("llama-tied")
    notices = write_model(base, tmp_path / "m.gguf", dtype=dtype)
    _, tensors = read(tmp_path / "m.gguf")
    source = {k: t.numpy() for k, t in load_file(base / "model.safetensors").items()}
    names = {"self_attn.o_proj": "attn_output", "mlp": "ffn", "self_attn": "attn"}
    for key, want in source.items():
        name = key.replace("model.layers.", "blk.").replace("_proj", "")
        for old, new in names.items():
            name = name.replace(old.removesuffix("_proj"), new)
        name = name.replace("attn.", "attn_").replace("ffn.", "ffn_")
        name = name.replace("input_layernorm", "attn_norm")
        name = name.replace("post_attention_layernorm", "ffn_norm")
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        name = name.replace("attn_o.", "attn_output.")
        got = tensors.pop(name)
        if "q_proj" in key or "k_proj" in key:
            got = rows_in_order(got, 4 if "q_proj" in key else 2)
        if want.ndim == 1:
            assert np.array_equal(got, want)
        elif dtype == "q8_0":  # half a step of the block's largest / 127, whose scale is float16
            largest = np.abs(want.reshape(-1, 32)).max(1, keepdims=True)
            assert (np.abs((got - want).reshape(-1, 32)) <= 0.5625 * largest / 127).all()
        else:
            assert (np.abs(got - want) <= BITS[dtype] * np.abs(want) + TINY).all()
    assert not tensors
    assert f"matrices in {dtype}" in notices[0]
    written = types(tmp_path / "m.gguf")
    assert written["token_embd.weight"] == dtype.upper() and written["output_norm.weight"] == "F32"


def test_fields(base_of, tmp_path):
    write_model(base_of("qwen3"), tmp_path / "m.gguf", dtype="f16")
    fields, tensors = read(tmp_path / "m.gguf")
    want = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.file_type": 1,
        "qwen3.block_count": 3,
        "qwen3.context_length": 256,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.pre": "qwen2",
    }
    assert {key: fields[key] for key in want} == want
    assert "output.weight" not in tensors and "blk.2.attn_q_norm.weight" in tensors
    assert len(fields["tokenizer.ggml.tokens"]) == tiny_models.ROWS


def test_norms_of_gemma_hold_the_one_that_transformers_adds(base_of, tmp_path):
    write_model(base_of("gemma3"), tmp_path / "m.gguf", dtype="bf16")
    _, tensors = read(tmp_path / "m.gguf")
    source = load_file(base_of("gemma3") / "model.safetensors")
    own = source["model.layers.1.pre_feedforward_layernorm.weight"] + 1
    assert np.array_equal(tensors["blk.1.ffn_norm.weight"], own.numpy())
    assert "blk.1.post_ffw_norm.weight" in tensors


def test_matrices_of_gpt2_are_turned_and_its_short_keys_are_read(base_of, tmp_path):
    source = load_file(base_of("gpt2") / "model.safetensors")
    short = tmp_path / "short"
    shutil.copytree(base_of("gpt2"), short)
    keys = {key.removeprefix("transformer."): t for key, t in source.items()}
    keys["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # the mask of old checkpoints
    save_file(keys, short / "model.safetensors", metadata={"format": "pt"})
    write_model(short, tmp_path / "m.gguf", dtype="f32")
    _, tensors = read(tmp_path / "m.gguf")
    own = source["transformer.h.1.attn.c_attn.weight"].T.numpy()
    assert np.array_equal(tensors["blk.1.attn_qkv.weight"], own)
    assert np.array_equal(tensors["position_embd.weight"], source["transformer.wpe.weight"].numpy())


def test_rope_of_llama_3(base_of, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    base = edited(base_of("llama"), tmp_path / "base", rope_parameters=rope)
    write_model(base, tmp_path / "m.gguf", dtype="f32")
    factors = read(tmp_path / "m.gguf")[1]["rope_freqs.weight"]
    assert factors.shape == (16,)
    assert factors[0] == 1 and abs(factors[-1] - 8) < 1e-5 and (np.diff(factors) >= -1e-5).all()


REFUSED = {
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "rope": (
        "qwen2",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type dynamic",
    ),
    "sliding": (
        "qwen2",
        {"sliding_window": 8, "layer_types": ["full_attention"] + 2 * ["sliding_attention"]},
        "sliding attention",
    ),
    "scale": ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar 64"),
    "pattern": ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
    "cap": ("gemma2", {"final_logit_softcapping": None}, "no softcapping"),
    "gpt2": ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_llama_cpp_computes_otherwise_are_refused(case, base_of, tmp_path):
    name, settings, reason = REFUSED[case]
    base = edited(base_of(name), tmp_path / "base", **settings)
    with pytest.raises(BaseError, match=reason):
        write_model(base, tmp_path / "m.gguf", dtype="f32")
    assert not (tmp_path / "m.gguf").exists()


def test_a_window_that_llama_cpp_ignores_is_a_notice(base_of, tmp_path):
    base = edited(base_of("mistral"), tmp_path / "base", sliding_window=64)
    notices = write_model(base, tmp_path / "m.gguf", dtype="f32")
    assert any("sliding window of 64 tokens" in notice for notice in notices)


def test_numbers_that_do_not_fit_and_weights_that_are_missing(base_of, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_of("llama"), base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"ffn_up.weight has a number of 1e\+05"):
        write_model(base, tmp_path / "m.gguf", dtype="f16")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".staging*"))
    write_model(base, tmp_path / "m.gguf", dtype="bf16")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match="lacks 1 weight"):
        write_model(base, tmp_path / "n.gguf", dtype="f32")
    weights["model.layers.2.mlp.extra.weight"] = torch.zeros(4)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match="no place"):
        write_model(base, tmp_path / "n.gguf", dtype="f32")


def test_one_tensor_is_in_memory_at_a_time(base_of, tmp_path, monkeypatch):
    read_tensor, alive = checkpoint_tensors.read, []

    def watched(*arguments):
        tensor = read_tensor(*arguments)
        assert sum(reference() is not None for reference in alive) <= 1
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(checkpoint_tensors, "read", watched)
    write_model(base_of("llama"), tmp_path / "m.gguf", dtype="f32")
    assert len(alive) == 30


def test_without_the_gguf_package(base_of, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError) as error:
        write_model(base_of("llama"), tmp_path / "m.gguf", dtype="f32")
    assert error.value.fix == 'pip install "lorica[gguf]"'
    assert not list(tmp_path.iterdir())
