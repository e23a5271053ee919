"""Settings of PEFT's other methods, and models with them."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.laws.bases import IDS, gpt2, move, small_llama
from tests.marks import slow_but
from tests.referee.models import LINEARS, QV, classifier, gemma, llama, logits

ADALORA = {"total_step": 100, "init_r": 6, "target_r": 3, "lora_alpha": 8}
IA3_TARGETS = ["k_proj", "v_proj", "down_proj"]


def gemma_of_long_window() -> nn.Module:
    """A Gemma whose window is longer than the rows."""
    return gemma(64)


CASES: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
    "adalora": ("AdaLora", small_llama, {**ADALORA, "target_modules": QV}),
    "adalora all-linear": ("AdaLora", llama, {**ADALORA, "target_modules": "all-linear"}),
    "adalora scale": ("AdaLora", llama, {**ADALORA, "target_modules": LINEARS, "lora_alpha": 5}),
    "adalora gpt2": (
        "AdaLora",
        gpt2,
        {**ADALORA, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    ),
    "adalora saved norm": (
        "AdaLora",
        small_llama,
        {**ADALORA, "target_modules": QV, "modules_to_save": ["norm"]},
    ),
    "adalora tokens": (
        "AdaLora",
        small_llama,
        {**ADALORA, "target_modules": QV, "trainable_token_indices": [5, 17]},
    ),
    "adalora classifier": (
        "AdaLora",
        classifier,
        {**ADALORA, "target_modules": QV, "modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
    "vera": ("Vera", small_llama, {"target_modules": ["q_proj", "o_proj"], "r": 16}),
    "vera all-linear": (
        "Vera",
        small_llama,
        {"target_modules": LINEARS, "r": 12, "d_initial": 0.3},
    ),
    "vera drawn anew": (
        "Vera",
        small_llama,
        {"target_modules": QV, "r": 8, "save_projection": False, "projection_prng_key": 5},
    ),
    "vera gpt2": ("Vera", gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "vera saved head, tied": (
        "Vera",
        small_llama,
        {"target_modules": QV, "r": 8, "modules_to_save": ["lm_head"]},
    ),
    "vera blocks": ("Vera", llama, {"target_modules": QV, "r": 8, "layers_to_transform": [1]}),
    "vera classifier": (
        "Vera",
        classifier,
        {"target_modules": QV, "r": 8, "modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
    "ia3": (
        "IA3",
        small_llama,
        {"target_modules": IA3_TARGETS, "feedforward_modules": ["down_proj"]},
    ),
    "ia3 biases": (
        "IA3",
        llama,
        {"target_modules": IA3_TARGETS, "feedforward_modules": ["down_proj"]},
    ),
    "ia3 no feedforward": (
        "IA3",
        llama,
        {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": []},
    ),
    "ia3 some feedforward": (
        "IA3",
        llama,
        {
            "target_modules": ["k_proj", "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"],
            "feedforward_modules": ["layers.1.mlp.down_proj"],
        },
    ),
    "ia3 regex": (
        "IA3",
        llama,
        {"target_modules": r".*(k_proj|up_proj)", "feedforward_modules": r".*up_proj"},
    ),
    "ia3 gpt2": (
        "IA3",
        gpt2,
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": True,
        },
    ),
    "ia3 exclude": (
        "IA3",
        llama,
        {
            "target_modules": IA3_TARGETS,
            "feedforward_modules": ["down_proj"],
            "exclude_modules": ["layers.0.mlp.down_proj"],
        },
    ),
    "ia3 saved norms": (
        "IA3",
        llama,
        {
            "target_modules": IA3_TARGETS,
            "feedforward_modules": ["down_proj"],
            "modules_to_save": ["input_layernorm"],
        },
    ),
    "ia3 classifier": (
        "IA3",
        classifier,
        {
            "target_modules": IA3_TARGETS,
            "feedforward_modules": ["down_proj"],
            "modules_to_save": ["score"],
            "task_type": "SEQ_CLS",
        },
    ),
    "prefix": ("PrefixTuning", small_llama, {"num_virtual_tokens": 5}),
    "prefix projected": (
        "PrefixTuning",
        llama,
        {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 10},
    ),
    "prefix zero": ("PrefixTuning", llama, {"num_virtual_tokens": 1, "init_weights": "zero"}),
    "prefix gpt2": ("PrefixTuning", gpt2, {"num_virtual_tokens": 4}),
    "prefix gemma": ("PrefixTuning", gemma_of_long_window, {"num_virtual_tokens": 2}),
    "prefix saved head": (
        "PrefixTuning",
        llama,
        {"num_virtual_tokens": 4, "modules_to_save": ["lm_head"]},
    ),
    "prefix classifier": (
        "PrefixTuning",
        classifier,
        {"num_virtual_tokens": 4, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "prompt": ("PromptTuning", small_llama, {"num_virtual_tokens": 5}),
    "prompt of the vocabulary": (
        "PromptTuning",
        llama,
        {"num_virtual_tokens": 7, "prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "prompt gpt2": ("PromptTuning", gpt2, {"num_virtual_tokens": 4}),
    "prompt gemma": ("PromptTuning", gemma_of_long_window, {"num_virtual_tokens": 2}),
    "prompt saved norms": (
        "PromptTuning",
        llama,
        {"num_virtual_tokens": 4, "modules_to_save": ["norm"]},
    ),
    "prompt classifier": (
        "PromptTuning",
        classifier,
        {"num_virtual_tokens": 4, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "p-tuning": ("PromptEncoder", small_llama, {"num_virtual_tokens": 5, "encoder_hidden_size": 9}),
    "p-tuning lstm": (
        "PromptEncoder",
        llama,
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 9,
            "encoder_num_layers": 1,
            "encoder_reparameterization_type": "LSTM",
        },
    ),
}
QUICK = {
    *("adalora", "adalora gpt2", "adalora saved norm", "vera", "vera drawn anew"),
    *("vera saved head, tied", "ia3", "ia3 no feedforward", "ia3 classifier"),
    *("prefix", "prefix gemma", "prompt", "prompt gpt2", "p-tuning"),
}
each_case = pytest.mark.parametrize("case", slow_but(QUICK, CASES))


def token_logits(model: nn.Module) -> torch.Tensor:
    """Logits of the tokens: PEFT returns those of the virtual tokens before them as well."""
    output = logits(model)
    return output[:, -IDS.shape[1] :] if output.ndim == 3 else output


def with_peft_adapter(case: str, **more: Any) -> nn.Module:
    """A base with PEFT's adapter, moved."""
    import peft

    kind, make, settings = CASES[case]
    config = getattr(peft, f"{kind}Config")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = make()
        torch.manual_seed(0)
        model = peft.get_peft_model(
            base, config(**{"task_type": "CAUSAL_LM", **copy.deepcopy(settings), **more})
        )
    return move(model, size=0.3 if make is gpt2 else 0.1)  # gpt2's own weights are small


def loaded_by_peft(case: str, path: Path) -> nn.Module:
    """A fresh base of the case with what is at `path`, loaded by PEFT without complaint."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(CASES[case][1](), str(path))
    assert not [w for w in caught if "missing" in str(w.message).lower()]
    return model


OUR_CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], dict[str, Any]]] = {
    "adalora": (small_llama, "adalora", {"r": 5}, {}),
    "adalora alpha": (llama, "adalora", {"r": 4, "alpha": 3, "tinit": 5}, {}),
    "adalora grown": (llama, "adalora", {"r": 4, "mode": "increase"}, {"target_modules": QV}),
    "adalora gpt2": (gpt2, "adalora", {"r": 4}, {}),
    "adalora rows": (
        small_llama,
        "adalora",
        {"r": 4},
        {"target_modules": QV, "trainable_token_indices": [3, 9], "modules_to_save": ["norm"]},
    ),
    "vera": (small_llama, "vera", {"r": 16}, {}),
    "vera gpt2": (gpt2, "vera", {"r": 16, "d_initial": 0.5}, {}),
    "vera some layers": (
        llama,
        "vera",
        {"r": 8},
        {"target_modules": ["layers.0.self_attn.q_proj", "up_proj"]},
    ),
    "vera drawn anew": (small_llama, "vera", {"r": 8, "save_projection": False}, {"seed": 7}),
    "ia3": (small_llama, "ia3", {}, {}),
    "ia3 gpt2": (gpt2, "ia3", {}, {}),
    "ia3 by name": (
        llama,
        "ia3",
        {"feedforward_modules": ["1.mlp.up_proj"]},
        {"target_modules": ["up_proj", "o_proj"]},
    ),
    "ia3 none": (llama, "ia3", {"feedforward_modules": []}, {"target_modules": "all-linear"}),
    "ia3 head": (classifier, "ia3", {}, {"modules_to_save": ["score"]}),
    "prefix": (small_llama, "prefix_tuning", {"num_virtual_tokens": 6}, {}),
    "prefix network": (
        llama,
        "prefix_tuning",
        {"num_virtual_tokens": 6, "reparametrisation": 7},
        {},
    ),
    "prefix gpt2": (gpt2, "prefix_tuning", {"num_virtual_tokens": 3}, {}),
    "prefix rows": (
        llama,
        "prefix_tuning",
        {"num_virtual_tokens": 3},
        {"modules_to_save": ["norm"]},
    ),
    "prompt": (small_llama, "prompt_tuning", {"num_virtual_tokens": 6}, {}),
    "prompt network": (
        llama,
        "prompt_tuning",
        {"num_virtual_tokens": 6, "reparametrisation": 7},
        {},
    ),
    "prompt text": (
        gpt2,
        "prompt_tuning",
        {"num_virtual_tokens": 3, "init": "text", "init_ids": (5, 6)},
        {},
    ),
    "prompt head": (classifier, "prompt_tuning", {}, {"modules_to_save": ["score"]}),
}
