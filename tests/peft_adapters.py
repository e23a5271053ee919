"""Adapters that PEFT writes in the test, with the logits that PEFT computes for them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

LINEAR = ["gate_proj", "up_proj", "o_proj", "v_proj", "k_proj", "q_proj", "down_proj"]
QV = ["v_proj", "q_proj"]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": QV},
    "lora-all-linear": {"target_modules": LINEAR},
    "dora-all-linear": {"target_modules": LINEAR, "use_dora": True, "r": 8, "lora_alpha": 16},
    "lora-rslora": {"target_modules": QV, "use_rslora": True},
    "lora-embedding": {"target_modules": [*QV, "embed_tokens"]},
    "lora-modules-to-save": {"target_modules": QV, "modules_to_save": ["norm"]},
}
IDS = torch.arange(3, 27).view(2, 12)


def write(case: str, base: Path, folder: Path) -> Path:
    """Write adapter `case` of CASES, with random numbers, on the base in `base`.

    Beside it: expected.safetensors, with input_ids, logits_base and logits_adapter.
    """
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **CASES[case]}
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PEFT's own
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        expected = {"input_ids": IDS, "logits_base": plain(IDS).logits}
        model = peft.get_peft_model(plain, peft.LoraConfig(**settings)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        expected["logits_adapter"] = model(IDS).logits
        model.save_pretrained(folder)
    save_file(expected, folder / "expected.safetensors")
    return folder


def write_all(base: Path, folder: Path) -> Path:
    """Write every case of CASES into a folder of its own below `folder`."""
    for case in CASES:
        write(case, base, folder / case)
    return folder
