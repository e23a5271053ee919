"""Small bases in several files, and adapters with random numbers on them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import lorica
from lorica.base.load import load as load_base
from lorica.formats.save import save
from tests import small_base

INDEX = "model.safetensors.index.json"
IDS = torch.tensor([[5, 9, 33, 70, 12, 8, 99, 40]])
SIZES: dict[str, Any] = {"vocab_size": 360, "bos_token_id": 1, "eos_token_id": 2}


def untied_llama() -> Any:
    config = small_base.model().config
    config.tie_word_embeddings = False
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SIZES)
    return transformers.GPT2LMHeadModel(config)


def qwen2() -> Any:
    """Its q, k and v have biases."""
    config = transformers.Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        **SIZES,
    )
    return transformers.Qwen2ForCausalLM(config)


def write_base(
    model: Any, folder: Path, dtype: torch.dtype = torch.float32, size: str = "20KB"
) -> Path:
    """A base in several files, with the small tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=size)
    small_base.tokenizer().save_pretrained(folder)
    return folder


def write_adapter(
    base: Path,
    folder: Path,
    method: Any = None,
    *,
    quantisation: str | None = None,
    labels: list[str] | None = None,
    **targets: Any,
) -> Path:
    """An adapter with random numbers."""
    loaded = load_base(str(base), quantisation=quantisation, labels=labels)
    method = lorica.Lora(r=2) if method is None else method
    lorica.adapt(loaded.model, method, seed=0, **targets)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return save(loaded.model, folder, base_path=str(base), labels=loaded.labels)
