"""Random adapters on the bundled base, of an effect that training has, to hand over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lorica
from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers, bank_of
from lorica.core.condition import set_conditions
from lorica.formats.save import save

BASE = "bundled"
TEXT = "Ticket 4821: the printer on floor 3 does not answer.\nOnce upon a time there was a fox."
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = {
    "rank_pattern": {"down_proj": 2, "layers.3.self_attn.q_proj": 12},
    "alpha_pattern": {"layers.1.mlp.up_proj": 3},
}


@dataclass(frozen=True)
class Case:
    """One adapter. size: of the random numbers that are added to what is trained."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, Any] = field(default_factory=dict)
    condition: str | None = None
    size: float = 0.02


ADAPTERS: Mapping[str, Case] = {
    "LoRA": Case("lora", {"r": 8}),
    "rsLoRA": Case("lora", {"r": 8, "alpha": 16, "use_rslora": True}),
    "PiSSA": Case("lora", {"r": 8, "init": "pissa"}),
    "ranks and scales by pattern": Case("lora", {"r": 6, "alpha": 9}, PATTERNS),
    "AdaLoRA, pruned to mixed ranks": Case("adalora"),
    "double LoRA": Case("double_lora"),
    "dynamic DoRA": Case("dora_dynamic", size=0.03),
    "ALoRA": Case("alora", size=0.03),
    "VeRA": Case("vera", size=0.2),
    "HyperLoRA at a condition": Case(
        "hyperlora", {"r": 4, "conditions": ("en", "fr")}, condition="fr", size=0.03
    ),
}
"""Each is a LoRA: its export is exact."""
MERGED: Mapping[str, Case] = {
    "DoRA, merged": Case("dora", {"r": 8}),
    "MoRA, merged": Case("mora", size=0.03),
}


@dataclass(frozen=True)
class Comparison:
    """Log-probabilities of a runtime and of transformers, at every token and position.

    worst, mean: of the absolute differences, nats. effect: the largest that the adapter makes.
    """

    worst: float
    mean: float
    effect: float = 0.0


def compared(got: Tensor, want: Tensor, base: Tensor | None = None) -> Comparison:
    """got, want (T, V): log-probabilities; base: without the adapter."""
    difference = (got - want).abs()
    effect = 0.0 if base is None else (want - base).abs().max().item()
    return Comparison(difference.max().item(), difference.mean().item(), effect)


def ids_of(opened: LoadedModel) -> list[int]:
    return opened.tokenizer(TEXT, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def log_probabilities_of(opened: LoadedModel, ids: list[int]) -> Tensor:
    """What transformers computes, (T, V) in float32."""
    return opened.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def moved(case: Case) -> LoadedModel:
    """The base with the adapter of a case, at its condition."""
    opened = load_base(BASE)
    method = Method.named(case.method)(**case.settings)
    lorica.adapt(opened.model, method, target_modules=LINEARS, **case.targets)
    move(opened.model, case.size)
    if case.method == "adalora":
        _prune(opened.model)
    if case.condition is not None:
        set_conditions(opened.model, [case.condition])
    return opened


@torch.no_grad()
def move(model: nn.Module, size: float) -> None:
    """Move trainable tensors away from their start, as a run does. In place."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator)
    bank = bank_of(model)
    bank.driven |= bank.specs.keys()


@torch.no_grad()
def _prune(model: nn.Module) -> None:
    """Other ranks at every layer, as AdaLoRA's budget leaves them. In place."""
    for i, (_, _, adapters) in enumerate(adapted_layers(model)):
        e: Any = adapters["default"].get_parameter("e")
        e *= 40  # a random e is small beside what training makes of it
        e[1 + i % len(e) :] = 0


def written(case: Case, folder: Path) -> tuple[Path, Tensor]:
    """The adapter of a case, saved in `folder`, and what transformers computes with it."""
    opened = moved(case)
    want = log_probabilities_of(opened, ids_of(opened))
    set_conditions(opened.model, None)
    save(opened.model, folder, "default", tokenizer=opened.tokenizer, base_path=BASE)
    return folder, want
