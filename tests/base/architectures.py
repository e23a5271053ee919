"""Small random bases of many architectures, made from transformers' configs alone.

    tiny("Phi3", "longrope")     the model, float32, in eval mode
    deep("llama")                the same with five times as many blocks
    write(folder, "Llama")       the first as a folder with a tokenizer

Weights of matrices are spread, so that what differs shows in the logits. Thresholds (windows,
chunks, original lengths) are a few tokens long.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 300
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DRY = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
DEEPSEEK = {
    **GROUPED,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "first_k_dense_replace": 1,
}
LLAMA4 = {
    **HEADS,
    "intermediate_size_mlp": 64,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "rope_parameters": PLAIN,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "llama_tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama_dynamic": (
        "Llama",
        {
            **GROUPED,
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "phi3": ("Phi3", GROUPED),
    "phi3_longrope": (
        "Phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 24,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 24,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 8.0, 20.0],
            },
        },
    ),
    "llama4_chunks": (
        "Llama4",
        {
            **LLAMA4,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 1],
            "attn_temperature_tuning": False,
            "layer_types": ["chunked_attention"] * 2,
        },
    ),
    "llama4_temperature": (
        "Llama4",
        {
            **LLAMA4,
            "attention_chunk_size": 8192,
            "floor_scale": 16,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "ministral3": (
        "Ministral3",
        {
            **HEADS,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "gpt2": ("GPT2LMHead", {**GPT, **DRY}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 96,
            "intermediate_size": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoX", SIZE),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 4}),
    "codegen": ("CodeGen", {**GPT, **DRY, "n_ctx": 96, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", {**GPT, **DRY}),
    "ctrl": (
        "CTRLLMHead",
        {
            "vocab_size": VOCABULARY,
            "n_positions": 96,
            "n_embd": 32,
            "dff": 64,
            "n_layer": 2,
            "n_head": 4,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    "opt": (
        "OPT",
        {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, "pad_token_id": 1},
    ),
    "bloom": (
        "Bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 3,
        },
    ),
    "falcon": (
        "Falcon",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "mpt": (
        "Mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    ),
    "phi": ("Phi", SIZE),
    "gemma": ("Gemma", HEADS),
    "gemma2": ("Gemma2", {**HEADS, "sliding_window": 8}),
    "gemma3": ("Gemma3", {**HEADS, **WINDOWS}),
    "gemma3n": (
        "Gemma3n",
        {
            **HEADS,
            **WINDOWS,
            "intermediate_size": [64, 64],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "qwen2": (
        "Qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 8}),
    "qwen3": ("Qwen3", HEADS),
    "qwen3_moe": ("Qwen3Moe", {**HEADS, **EXPERTS}),
    "qwen2_moe": ("Qwen2Moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_next": (
        "Qwen3Next",
        {**HEADS, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    ),
    "mixtral": ("Mixtral", {**GROUPED, **LOCAL}),
    "phimoe": (
        "Phimoe",
        {**GROUPED, **LOCAL, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    ),
    "olmo2": ("Olmo2", GROUPED),
    "olmoe": ("Olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("DeepseekV2", DEEPSEEK),
    "deepseek_v3": ("DeepseekV3", {**DEEPSEEK, "rope_parameters": PLAIN}),
    "glm4_moe": (
        "Glm4Moe",
        {
            **HEADS,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **HEADS,
            **LOCAL,
            **WINDOWS,
            "intermediate_size": 16,
            "rope_parameters": PLAIN,
        },
    ),
    "cohere": ("Cohere", GROUPED),
    "granite": (
        "Granite",
        {
            **GROUPED,
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
        },
    ),
    "starcoder2": ("Starcoder2", {**GROUPED, "sliding_window": 8}),
    "stablelm": ("StableLm", GROUPED),
    "smollm3": ("SmolLM3", GROUPED),
    "nemotron": ("Nemotron", HEADS),
    "glm4": ("Glm4", HEADS),
    "modernbert_decoder": (
        "ModernBertDecoder",
        {
            **SIZE,
            "local_attention": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "pad_token_id": 0,
            "cls_token_id": 0,
            "sep_token_id": 0,
        },
    ),
    "mamba": ("Mamba", SMALL),
    "mamba2": (
        "Mamba2",
        {**SMALL, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 16},
    ),
    "lfm2": ("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "Jamba",
        {
            **GROUPED,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("Bamba", {**GROUPED, **MAMBA, "attn_layer_indices": [1]}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": 16,
            "block_types": ["recurrent", "recurrent", "attention"],
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "context_length": 96,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}


def tiny(name: str, **settings: object) -> Any:
    """The base of that name with some settings changed; the same weights every time."""
    kind, given = BASES[name]
    config = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind.removesuffix('LMHead')}Config"
    if kind in ("Gemma3n", "Llama4"):
        config = f"{kind}TextConfig"
    model = f"{kind}Model" if kind.endswith("LMHead") else f"{kind}ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = getattr(transformers, model)(getattr(transformers, config)(**{**given, **settings}))
    for parameter in made.parameters():
        if parameter.ndim > 1 and parameter.std() < 0.05:
            parameter.data.mul_(3.0)
    return made.eval()


def deep(name: str) -> Any:
    """`tiny(name)` with its blocks five times, in the same pattern."""
    more: dict[str, Any] = {}
    for key, value in BASES[name][1].items():
        if key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            more[key] = 5 * value
        elif key == "attention_types":
            more[key] = [[value[0][0], 5 * value[0][1]]]
        elif isinstance(value, list) and len(value) == 2:  # one for each block
            more[key] = 5 * value
    return tiny(name, **more)


@cache
def tokenizer() -> Any:
    """Bytes, and a few words of English; VOCABULARY tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the cat sat on the mat and the dog ran to the house " * 9], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def write(folder: Path, name: str, **settings: object) -> Path:
    tiny(name, **settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
