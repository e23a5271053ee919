"""Weights of experts that are one tensor for all of them, and that no adapter acts on."""

from collections.abc import Iterable, Iterator

from torch import nn

from lorica.core.bank import adapted_layers
from lorica.core.site import ADAPTERS, expert_sites, site_of
from lorica.core.targets import EXPERTS


def fused_experts(model: nn.Module) -> list[str]:
    """A notice on fused weights of experts that are not adapted, and the setting that adapts
    them."""
    adapted = {name for name, _, _ in adapted_layers(model)}
    left = {
        name: declared
        for name, declared in fused_weights(model)
        if name not in adapted and name.rpartition(".")[0] not in adapted
    }
    if not left:
        return []
    fix = (
        f"target_parameters: {EXPERTS} adapts them (methods lora and dora)"
        if all(left.values())
        else "this architecture does not declare how they lie, so they cannot be adapted"
    )
    notice = (
        f"experts are not adapted: {share_of(model, left):.0%} of the parameters are fused weights "
        f"of experts ({next(iter(left))} and others); {fix}"
    )
    return [notice]


def fused_weights(model: nn.Module) -> Iterator[tuple[str, bool]]:
    """(name, whether its module declares how it lies) of every fused weight of experts."""
    for name, module in model.named_modules():
        if ADAPTERS in name.split(".") or "expert" not in f"{name} {type(module).__name__}".lower():
            continue
        site = site_of(name, module)
        if site is None or site.kind != "other":
            continue
        stacks = [site.name for site in expert_sites(name, module)]
        yield from ((stack, True) for stack in stacks)
        for key, parameter in module._parameters.items():
            if not stacks and parameter is not None and parameter.ndim > 1:
                yield f"{name}.{key}", False


def share_of(model: nn.Module, names: Iterable[str]) -> float:
    """The share of the base's parameters that are in these tensors."""
    sizes = {id(p): p.numel() for n, p in model.named_parameters() if ADAPTERS not in n.split(".")}
    chosen = {id(p := model.get_parameter(name)): p.numel() for name in names}
    return sum(chosen.values()) / sum(sizes.values())
