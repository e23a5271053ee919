"""What of a model no adapter acts on, and why: layers that are not plain, experts that are fused.

A layer that declares the sizes of a linear layer need not be one: a router may give a tuple. It is
tried: one call, a tensor in, a tensor out, of the declared sizes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.site import ADAPTERS, Site, site_of
from lorica.errors import TargetError, listed

PLAIN = (nn.Linear.forward, nn.Embedding.forward)


def not_plain(sites: Sequence[Site]) -> dict[str, str]:
    """Name -> reason of the linear layers and embeddings that a call shows to be something else.

    Packed layers are trusted: some need a device that is not theirs yet.
    """
    known: dict[tuple[type, int, int], str | None] = {}
    found: dict[str, str] = {}
    for site in sites:
        if site.kind not in ("linear", "embedding") or not site.is_dense:
            continue
        key = type(site.module), site.in_features, site.out_features
        if key not in known:
            known[key] = None if key[0].forward in PLAIN else _why(site)
        if (reason := known[key]) is not None:
            found[site.name] = reason
    return found


@torch.no_grad()
def _why(site: Site) -> str | None:
    """None if some tensor in gives the tensor that is declared; else what came instead."""
    reason = ""
    for lead in ((2, 3), (6,)):  # rows of tokens, or tokens in one row: some layers take these only
        x = site.like.new_zeros(*lead, site.in_features)
        if site.kind == "embedding":
            x = site.like.new_zeros(lead, dtype=torch.long)
        try:
            y: Any = site.module.forward(x)
        except Exception as error:  # a layer may refuse in any way at all
            text = str(error).strip()
            reason = f"refuses a tensor alone ({text.splitlines()[0] if text else type(error)})"
            continue
        if not isinstance(y, Tensor):
            return f"gives a {type(y).__name__} instead of a tensor"
        if y.shape == (*lead, site.out_features):
            return None
        return f"gives {tuple(y.shape)} for {tuple(x.shape)}, and declares {site.out_features}"
    return reason


def refuse_named(odd: dict[str, str]) -> None:
    """Raises: TargetError if layers that were named are among those that cannot be adapted."""
    if odd:
        raise TargetError(
            f"{len(odd)} of the layers that are named cannot be adapted.",
            layers=listed(f"{name} {reason}" for name, reason in odd.items()),
            fix="leave them out: exclude_modules, or other target_modules",
        )


def what_it_is(model: nn.Module, entry: str) -> str | None:
    """Why a name that selects nothing does not, where the model has a layer of that name."""
    for name, module in model.named_modules():
        if ADAPTERS not in name.split(".") and (name == entry or name.endswith(f".{entry}")):
            kind = type(module).__name__
            held = any(True for _ in module.children())
            return f"{name} is a {kind}" + (", which holds layers" if held else "")
    return None


def fused_experts(model: nn.Module) -> list[str]:
    """A named line on experts that are one tensor for all of them, which no adapter changes."""
    fused: dict[int, int] = {}
    every: dict[int, int] = {}
    example = ""
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        site = site_of(name, module)
        plain = site is not None and site.kind != "other"
        experts = "expert" in f"{name} {type(module).__name__}".lower()
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            every[id(parameter)] = parameter.numel()
            if experts and not plain and parameter.ndim > 1 and ADAPTERS not in module._modules:
                fused[id(parameter)] = parameter.numel()
                example = example or f"{name}.{key}"
    if not fused:
        return []
    share = sum(fused.values()) / sum(every.values())
    line = f"experts are not adapted: {share:.0%} of the parameters are fused weights of experts"
    return [f"{line} ({example} and others)"]
