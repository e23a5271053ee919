"""GGUF files in llama.cpp itself: the log-probabilities of transformers, and the same tokens.

Attention runs in float32 there (see benchmarks/runtimes/llamacpp_server.py), so that an error of
the files is not lost in llama.cpp's own rounding.
"""

from unicodedata import normalize

import pytest
import torch

import lorica
from benchmarks.runtimes import interpreter
from benchmarks.runtimes.llamacpp import log_probabilities, tokens_of
from benchmarks.runtimes.server import serving
from lorica import Lora
from lorica.base.load import load as load_base
from lorica.core.attach import use
from lorica.formats.save import save
from lorica.handover.gguf.lora import write_lora
from lorica.handover.gguf.model import write_model
from lorica.handover.gguf.pre_tokenizers import RARE
from tests.handover.gguf import tiny_models, tiny_tokenizers
from tests.laws.bases import move

IDS = [1, *(3 + 37 * i % 350 for i in range(39))]  # longer than the windows of the tiny models
EXACT, GELU = 5e-5, 5e-3
"""Largest difference of a log-probability; llama.cpp reads GELU from a table in float16."""
INSTALL = "python -m benchmarks.runtimes.install llamacpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter("llamacpp") is None, reason=f"llama.cpp: run {INSTALL}"),
]


def expected(model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def worst(got, want):
    return (got - want).abs().max().item()


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_every_architecture_computes_as_in_transformers(name, tmp_path):
    base = tiny_models.write(name, tmp_path / "base")
    opened = load_base(str(base))
    model = opened.model
    write_model(base, tmp_path / "base.gguf", dtype="f32")
    linears = ["c_attn", "c_proj", "c_fc"] if name == "gpt2" else "all-linear"
    adapted = move(lorica.adapt(model, Lora(r=3, alpha=7), target_modules=linears), size=0.1)
    save(adapted, tmp_path / "a", "default", base_path=str(base))
    write_lora(tmp_path / "a", str(base), tmp_path / "a.gguf")
    files = [tmp_path / "base.gguf", tmp_path / "a.gguf"]
    with serving("llamacpp", *files, log=tmp_path / "log") as address:
        rows = model.config.vocab_size
        plain = log_probabilities(address, IDS, rows, [0.0])
        with_adapter = log_probabilities(address, IDS, rows, [1.0])
        rare = set(RARE.values()) if name == "mistral" else set()  # a notice says so
        for text in set(tiny_tokenizers.TEXTS) - rare:
            text = normalize("NFC", text)  # llama.cpp does not do that for Qwen's: a notice too
            assert tokens_of(address, text, special=True) == opened.tokenizer(text)["input_ids"]
    want = expected(adapted)
    with use(model):
        base_want = expected(model)
    assert worst(base_want, want) > 0.1  # the adapter acts
    assert worst(plain, base_want) < (GELU if name in ("gemma2", "gemma3", "gpt2") else EXACT)
    assert worst(with_adapter, want) < 2 * worst(plain, base_want) + EXACT
