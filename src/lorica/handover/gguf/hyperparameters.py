"""A model's config as the fields of a GGUF file, where llama.cpp computes the same with them.

What llama.cpp fixes in its code (activations, which layers slide, how attention is scaled) is
compared with the config, and refused where it differs.
"""

from collections.abc import Mapping
from typing import Any

from lorica.errors import BaseError, listed
from lorica.handover.gguf.architectures import Architecture
from lorica.handover.gguf.writer import Fields

_SCALED = ("default", "linear", "yarn")
ROPE_TYPES = {
    "llama": (*_SCALED, "llama3"),
    "mistral": (*_SCALED, "llama3"),
    "qwen2": _SCALED,
    "qwen3": _SCALED,
    "gemma2": ("default",),
    "gemma3_text": ("default", "linear"),
}
"""By transformers' model_type: the kinds of RoPE that llama.cpp computes alike."""
GELU = "gelu_pytorch_tanh"
WITH_WINDOW = ("gemma2", "gemma3_text")
SLIDING_PERIOD = {"gemma2": 2, "gemma3": 6}
"""Of so many layers the last one attends to everything."""
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""Blocks of the one size for which llama.cpp scales attention by the width over the heads."""


def hyperparameter_fields(
    config: Any, architecture: Architecture, source: str
) -> tuple[Fields, list[str]]:
    """The fields, and notices. config: transformers'. source: of the model, for messages.

    Raises: BaseError that lists the settings with which llama.cpp computes something else.
    """
    problems = _gpt2_problems(config) if architecture.name == "gpt2" else _problems(config)
    if architecture.name in SLIDING_PERIOD:
        problems += _gemma_problems(config, architecture.name)
    if problems:
        raise BaseError(
            f"{source} has settings with which llama.cpp computes something else.",
            settings=listed(problems, 8),
            fix="serve it with lorica serve or vLLM, which compute it as it was trained",
        )
    if architecture.name == "gpt2":
        return _gpt2_fields(config), []
    return _prefixed(architecture.name, _decoder_fields(config)), _notices(config, architecture)


def _prefixed(name: str, fields: Mapping[str, Any]) -> Fields:
    return {f"{name}.{key}": value for key, value in fields.items() if value is not None}


def _gpt2_fields(config: Any) -> Fields:
    return _prefixed(
        "gpt2",
        {
            "block_count": config.n_layer,
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "feed_forward_length": config.n_inner or 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        },
    )


def _gpt2_problems(config: Any) -> list[str]:
    fixed = {
        "activation_function": ("gelu_new", GELU),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    return _differing(config, fixed)


def head_size(config: Any) -> int:
    """D of a model that is not a GPT-2."""
    stated = getattr(config, "head_dim", None)
    return stated or config.hidden_size // config.num_attention_heads


def _decoder_fields(config: Any) -> dict[str, Any]:
    size, rope, sliding = head_size(config), _rope(config), _rope(config, "sliding_attention")
    scaled = rope["rope_type"] in ("linear", "yarn")
    final_cap = getattr(config, "final_logit_softcapping", None)
    cap = getattr(config, "attn_logit_softcapping", None)
    slides = config.model_type in WITH_WINDOW
    original = rope.get("original_max_position_embeddings")
    return {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.sliding_window": config.sliding_window if slides else None,
        "rope.dimension_count": size,
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.freq_base_swa": float(sliding["rope_theta"]) if sliding is not rope else None,
        "rope.scaling.type": rope["rope_type"] if scaled else None,
        "rope.scaling.factor": float(rope["factor"]) if scaled else None,
        "rope.scaling.original_context_length": original if rope["rope_type"] == "yarn" else None,
        "attn_logit_softcapping": None if cap is None else float(cap),
        "final_logit_softcapping": None if final_cap is None else float(final_cap),
    }


def _rope(config: Any, kind: str = "full_attention") -> Mapping[str, Any]:
    """RoPE's settings; of a model with two kinds of attention, those of `kind`."""
    rope = config.rope_parameters
    return rope.get(kind) or rope


def _problems(config: Any) -> list[str]:
    gemma = config.model_type.startswith("gemma")
    act = "hidden_activation" if gemma else "hidden_act"
    problems = _differing(config, {act: (GELU,) if gemma else ("silu",)})
    rope, sliding = _rope(config), _rope(config, "sliding_attention")
    if rope["rope_type"] not in ROPE_TYPES[config.model_type]:
        problems.append(f"rope_type {rope['rope_type']}")
    if sliding is not rope and sliding["rope_type"] != "default":
        problems.append(f"rope_type {sliding['rope_type']} of sliding attention")
    known = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    known |= {"low_freq_factor", "high_freq_factor"} if rope["rope_type"] == "llama3" else set()
    defaults = {"beta_fast": 32, "beta_slow": 1, "partial_rotary_factor": 1.0}
    problems += [
        f"rope_parameters.{key} {value!r}"
        for key, value in rope.items()
        if key not in known and value not in (None, defaults.get(key))
    ]
    slides = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])
    if slides and config.model_type not in WITH_WINDOW:
        problems.append("layers of sliding attention")
    return problems


def _gemma_problems(config: Any, name: str) -> list[str]:
    """name: general.architecture."""
    period, blocks = SLIDING_PERIOD[name], config.num_hidden_layers
    own = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(blocks)
    ]
    problems = [] if list(config.layer_types) == own else ["layer_types"]
    wide = blocks == SCALED_BY_WIDTH[name]
    scaled_by = config.hidden_size // config.num_attention_heads if wide else head_size(config)
    fixed: dict[str, tuple[Any, ...]] = {
        "query_pre_attn_scalar": (scaled_by,),
        "use_bidirectional_attention": (None, False),
    }
    if not config.sliding_window:
        problems.append("no sliding_window")
    if name == "gemma3":
        fixed["attn_logit_softcapping"] = (None,)
    elif None in (config.attn_logit_softcapping, config.final_logit_softcapping):
        problems.append("no softcapping")
    return problems + _differing(config, fixed)


def _differing(config: Any, fixed: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Settings whose value is not one of those that llama.cpp has."""
    values = {key: getattr(config, key, None) for key in fixed}
    return [f"{key} {value!r}" for key, value in values.items() if value not in fixed[key]]


def _notices(config: Any, architecture: Architecture) -> list[str]:
    window = getattr(config, "sliding_window", None)
    if architecture.name != "llama" or not window or window >= config.max_position_embeddings:
        return []
    what = f"llama.cpp ignores the sliding window of {window:,} tokens"
    return [f"{what}: longer texts are answered otherwise than in training"]
