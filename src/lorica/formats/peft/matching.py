"""Which layers PEFT will adapt when it reads a folder of ours: its rules, read off peft 0.21.2.

A list of target_modules names a layer by its whole name or by what follows a dot; a text is a regex
on the whole name. Beyond that PEFT (0.19 and later) takes the names of a model's experts, as they
were before transformers fused them, for the fused weights, and then no target of such a name
selects a layer any more. A parameter that target_parameters names is adapted all the same.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorica.base.model_view import config_view_of
from lorica.core.site import ADAPTERS, Site
from lorica.errors import listed

EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj"}
MIXTRAL = {"gate", "w1", "w2", "w3"}
CONVERTED: dict[str, set[str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), MIXTRAL),
    **dict.fromkeys(
        (
            "Dots3NoteTextModel",
            "UnlimitedOcrTextModel",
            "afmoe",
            "beam",
            "cohere2_moe",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "flex_olmo",
            "glm4_moe",
            "glm4_moe_lite",
            "glm4v_moe",
            "glm_moe_dsa",
            "hunyuan_v1_moe",
            "longcat_flash",
            "mellum",
            "olmoe",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe",
            "qwen3_omni_moe_text",
            "qwen3_omni_moe_thinker",
            "solar_open",
        ),
        EXPERTS,
    ),
}
"""model_type -> names that PEFT takes for fused experts, with transformers 5."""
MAMBA = {"out_proj", "conv1d"}
REFUSED: dict[str, set[str]] = {
    "falcon_h1": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "nemotron_h": MAMBA,
}
"""model_type -> names that PEFT refuses to adapt."""


@dataclass(frozen=True)
class Places:
    """How PEFT is told of the layers. problems: why it would not adapt the same ones."""

    modules: str | list[str]
    parameters: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def places_for(
    model: nn.Module, sites: Sequence[Site], peft_type: str, *, parameters: bool = False
) -> Places:
    """The shortest target_modules that selects exactly `sites`.

    parameters: the adapter may stand on a weight as well as on a layer (a plain LoRA).
    """
    kind = config_view_of(model).model_type
    every = [name for name, _ in model.named_modules() if ADAPTERS not in name.split(".") and name]
    taken = CONVERTED.get(kind, set()) if peft_type == "LORA" else set()
    refused = REFUSED.get(kind, set()) if peft_type in ("LORA", "ADALORA") else set()
    problems = []
    if bad := [site.name for site in sites if leaf(site.name) in refused]:
        problems.append(f"PEFT refuses {listed(bad, 2)} in models of type {kind}")
    if shared := _shared(model, sites):
        problems.append(
            f"PEFT adapts {listed(shared)} at one of the places where the model calls it"
        )
    layers = [site for site in sites if site.kind != "expert"]
    by_weight = [s for s in layers if leaf(s.name) in taken]
    if by_weight and not parameters:
        problems.append(f"PEFT takes {listed(s.name for s in by_weight)} for fused experts")
    if not parameters:
        by_weight = []
    wanted = [s.name for s in layers if s not in by_weight]
    weights = [f"{s.name}.weight" for s in by_weight]
    weights += shortest_parameters(model, [s.name for s in sites if s.kind == "expert"])
    return Places(shortest(wanted, every), weights, problems)


def shortest(wanted: Sequence[str], every: Sequence[str]) -> str | list[str]:
    """Leaf names if they select exactly `wanted` among `every`; else whole names; else a regex."""
    for entries in (sorted({leaf(name) for name in wanted}), list(wanted)):
        if selected(entries, every) == set(wanted):
            return entries
    return "|".join(re.escape(name) for name in wanted)


def shortest_parameters(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Names such as experts.down_proj if they select exactly the parameters `wanted`; else whole
    ones."""
    names = [n for n, _ in model.named_parameters() if ADAPTERS not in n.split(".")]
    endings = sorted({".".join(name.split(".")[-2:]) for name in wanted})
    return endings if selected(endings, names) == set(wanted) else list(wanted)


def selected(target: str | Collection[str], every: Sequence[str]) -> set[str]:
    """The layers that PEFT selects."""
    if isinstance(target, str):
        return {name for name in every if re.fullmatch(target, name)}
    endings = tuple(f".{entry}" for entry in target)
    return {name for name in every if name in target or name.endswith(endings)}


def leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _shared(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Sites that stand in the model under several names."""
    times: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        times[id(module)] = times.get(id(module), 0) + 1
    return [site.name for site in sites if times[id(site.module)] > 1]


def parameter_patterns(patterns: dict[str, Any], weights: Collection[str]) -> dict[str, Any]:
    """rank_pattern or alpha_pattern, where PEFT looks a weight up by the weight's name."""
    return {
        f"{key}.weight" if f"{key}.weight" in weights else key: value
        for key, value in patterns.items()
    }
