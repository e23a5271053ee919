"""Weights of experts that are one tensor for all of them, and that no adapter acts on."""

from torch import nn

from lorica.core.bank import adapted_layers
from lorica.core.site import ADAPTERS, expert_sites, site_of
from lorica.core.targets import EXPERTS


def fused_experts(model: nn.Module) -> list[str]:
    """A notice on fused weights of experts that are not adapted, and the setting that adapts
    them."""
    adapted = {name for name, _, _ in adapted_layers(model)}
    fused: dict[int, int] = {}
    sizes: dict[int, int] = {}
    example, have_sites = "", True
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        site = site_of(name, module)
        plain = site is not None and site.kind != "other"
        experts = "expert" in f"{name} {type(module).__name__}".lower()
        stacks = {site.parameter for site in expert_sites(name, module)}
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            sizes[id(parameter)] = parameter.numel()
            if not experts or plain or parameter.ndim < 2 or (stacks and key not in stacks):
                continue
            if name not in adapted and f"{name}.{key}" not in adapted:
                fused[id(parameter)] = parameter.numel()
                example = example or f"{name}.{key}"
                have_sites = have_sites and bool(stacks)
    if not fused:
        return []
    share = sum(fused.values()) / sum(sizes.values())
    fix = (
        f"target_parameters: {EXPERTS} adapts them (methods lora and dora)"
        if have_sites
        else "this architecture does not declare how they lie, so they cannot be adapted"
    )
    notice = f"experts are not adapted: {share:.0%} of the parameters are fused weights of experts"
    return [f"{notice} ({example} and others); {fix}"]
