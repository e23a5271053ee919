"""Random models of every architecture that is written as GGUF, small and with uneven sizes.

Heads times head size is not the width, keys have fewer heads than queries, weights are spread
(so that an error shows), and norms are not at their start.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.runtimes import tiny_tokenizers
from lorica.core.draws import drawing

ROWS = 448
"""Of the embedding: more than the tokenizers have tokens."""
SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.12,
    "tie_word_embeddings": False,
}
QWEN2 = {key: value for key, value in SIZES.items() if key != "head_dim"}
GEMMA = {**SIZES, "tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "llama-tied": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2Config", QWEN2),
    "qwen3": ("Qwen3Config", {**SIZES, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": ROWS,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.12,
        },
    ),
}

TOKENIZERS = {  # as models of the kind have them
    "llama": partial(tiny_tokenizers.byte_level, "llama-bpe"),
    "llama-tied": partial(tiny_tokenizers.sentence_piece, prefix=True),
    "mistral": partial(tiny_tokenizers.byte_level, "tekken"),
    "qwen2": partial(tiny_tokenizers.byte_level, "qwen2"),
    "qwen3": partial(tiny_tokenizers.byte_level, "qwen2"),
    "gemma2": partial(tiny_tokenizers.sentence_piece, prefix=False),
    "gemma3": partial(tiny_tokenizers.sentence_piece, prefix=False),
    "gpt2": partial(tiny_tokenizers.byte_level, "gpt-2"),
}


def model(name: str, **settings: Any) -> Any:
    """The model `name` of CONFIGS. settings: of its config, changed."""
    kind, own = CONFIGS[name]
    config = getattr(transformers, kind)(**{**own, **settings})
    with drawing(11), torch.no_grad():
        built = transformers.AutoModelForCausalLM.from_config(config).eval()
        for key, parameter in built.named_parameters():
            if "norm" in key or ".ln_" in key or key.endswith("bias"):
                parameter += 0.2 * torch.randn_like(parameter)
    return built


def write(name: str, folder: Path, **settings: Any) -> Path:
    """Write the model `name` and its tokenizer. Returns: the folder."""
    model(name, **settings).save_pretrained(folder)
    TOKENIZERS[name]().save_pretrained(folder)
    return folder
