"""Settings of PEFT's LoRA, and a model with each of them: from the package, and from PEFT."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Lora
from tests.laws.bases import gpt2, move, stories
from tests.marks import slow_but
from tests.referee.models import LINEARS, QV, classifier, gemma, llama, roberta

MATRIX: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (stories, {"target_modules": QV, "r": 4}),
    "all-linear": (stories, {"target_modules": "all-linear", "r": 8, "lora_alpha": 3}),
    "rslora": (llama, {"target_modules": QV, "r": 4, "use_rslora": True}),
    "dora": (llama, {"target_modules": LINEARS, "r": 4, "use_dora": True}),
    "dora rslora": (llama, {"target_modules": QV, "use_dora": True, "use_rslora": True}),
    "patterns": (
        stories,
        {
            "target_modules": LINEARS,
            "r": 4,
            "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {r"layers\.[12]\..*_proj": 3},
        },
    ),
    "dora patterns": (
        llama,
        {"target_modules": LINEARS, "use_dora": True, "rank_pattern": {"mlp.*": 3}},
    ),
    "rslora patterns": (
        llama,
        {
            "target_modules": LINEARS,
            "use_rslora": True,
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"up_proj": 5, "o_proj": 1},
        },
    ),
    "bias": (llama, {"target_modules": QV, "lora_bias": True}),
    "embedding, tied": (stories, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, untied": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "dora embedding": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head, tied": (stories, {"target_modules": ["lm_head", "q_proj"]}),
    "head, untied": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "saved norm": (stories, {"target_modules": QV, "modules_to_save": ["norm"]}),
    "saved norms": (llama, {"target_modules": QV, "modules_to_save": ["input_layernorm"]}),
    "saved head, tied": (stories, {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "saved head, untied": (llama, {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "saved embedding, tied": (stories, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "saved embedding, untied": (llama, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "saved both, tied": (
        stories,
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "saved both, untied": (
        llama,
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "tokens, tied": (stories, {"target_modules": QV, "trainable_token_indices": [5, 17, 30]}),
    "tokens, untied": (llama, {"target_modules": QV, "trainable_token_indices": [5, 17, 30]}),
    "tokens and norm": (
        llama,
        {"target_modules": QV, "trainable_token_indices": [9], "modules_to_save": ["norm"]},
    ),
    "exclude": (llama, {"target_modules": LINEARS, "exclude_modules": ["k_proj"]}),
    "exclude by regex": (llama, {"target_modules": LINEARS, "exclude_modules": r".*mlp.*"}),
    "blocks": (llama, {"target_modules": QV, "layers_to_transform": [1]}),
    "regex": (llama, {"target_modules": r".*\.layers\.0\..*(q|down)_proj"}),
    "one full name": (llama, {"target_modules": ["model.layers.1.self_attn.o_proj"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 dora": (
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "gpt2 embedding": (gpt2, {"target_modules": ["wte"]}),
    "gpt2 bias": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    "gemma embedding": (gemma, {"target_modules": ["embed_tokens", "q_proj"]}),
    "gemma dora embedding": (gemma, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "gemma tokens": (gemma, {"target_modules": QV, "trainable_token_indices": [5, 17]}),
    "classifier": (
        classifier,
        {"target_modules": QV, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "classifier all-linear": (
        classifier,
        {"target_modules": "all-linear", "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "pissa": (stories, {"target_modules": QV, "r": 4, "init_lora_weights": "pissa"}),
    "pissa rslora patterns": (
        llama,
        {
            "target_modules": LINEARS,
            "r": 4,
            "use_rslora": True,
            "init_lora_weights": "pissa",
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"up_proj": 5, "o_proj": 1},
        },
    ),
    "pissa dora": (llama, {"target_modules": QV, "use_dora": True, "init_lora_weights": "pissa"}),
    "pissa gpt2": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": "pissa"},
    ),
    "olora": (stories, {"target_modules": QV, "r": 4, "init_lora_weights": "olora"}),
    "olora dora": (llama, {"target_modules": QV, "use_dora": True, "init_lora_weights": "olora"}),
    "roberta": (
        roberta,
        {
            "target_modules": ["query", "value"],
            "task_type": "SEQ_CLS",
            "modules_to_save": ["classifier"],
        },
    ),
}
QUICK = {
    *("plain", "all-linear", "rslora", "dora", "patterns", "dora patterns", "bias", "regex"),
    *("embedding, tied", "head, untied", "saved norm", "saved head, tied", "saved both, untied"),
    *("tokens, untied", "tokens and norm", "exclude", "gpt2", "gpt2 bias", "gemma embedding"),
    *("classifier", "pissa", "olora dora", "roberta"),
}
each_case = pytest.mark.parametrize("case", slow_but(QUICK, MATRIX))
PACKAGE_NAMES = {"lora_alpha": "alpha", "init_lora_weights": "init"}


def with_our_adapter(case: str) -> nn.Module:
    """A base with our adapter, moved."""
    make, settings = MATRIX[case]
    words = {"r", "lora_alpha", "use_rslora", "lora_bias", "init_lora_weights"}
    kind = Dora if settings.get("use_dora") else Lora
    method = kind(**{PACKAGE_NAMES.get(k, k): v for k, v in settings.items() if k in words})
    drop = words | {"use_dora", "fan_in_fan_out", "task_type"}
    targets = {k: v for k, v in settings.items() if k not in drop}
    return move(lorica.adapt(make(), method, **targets))


def with_peft_adapter(case: str) -> nn.Module:
    """A base with PEFT's adapter, moved."""
    from peft import LoraConfig, get_peft_model

    make, settings = MATRIX[case]
    settings = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, **copy.deepcopy(settings)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = make()
        torch.manual_seed(0)  # PEFT starts from the global state; every run tests the same start
        model = get_peft_model(base, LoraConfig(**settings))
    return move(model)
