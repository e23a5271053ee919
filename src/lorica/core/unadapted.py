"""The layers of a model that adapters do not support, and why.

A layer that declares the sizes of a linear layer need not be one: a router may return a tuple. One
call shows it: a tensor in, and a tensor of the declared size out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.site import ADAPTERS, Site
from lorica.errors import TargetError, listed

PLAIN = (nn.Linear.forward, nn.Embedding.forward)


def unsupported_layers(sites: Sequence[Site]) -> dict[str, str]:
    """Name -> reason of the linear layers and embeddings that a call shows to be something else.

    Packed layers are not called: some are not on their device yet.
    """
    known: dict[tuple[type, int, int], str | None] = {}
    reasons: dict[str, str] = {}
    for site in sites:
        if site.kind not in ("linear", "embedding") or not site.is_dense:
            continue
        key = type(site.module), site.in_features, site.out_features
        if key not in known:
            known[key] = None if key[0].forward in PLAIN else _why(site)
        if (reason := known[key]) is not None:
            reasons[site.name] = reason
    return reasons


@torch.no_grad()
def _why(site: Site) -> str | None:
    """None if a call returns the tensor that the layer declares; else what it does instead."""
    reason = ""
    for lead in ((2, 3), (6,)):  # some layers accept only (B, T, I), others only (T, I)
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
            return f"returns a {type(y).__name__} instead of a tensor"
        if y.shape == (*lead, site.out_features):
            return None
        return f"returns {tuple(y.shape)} for {tuple(x.shape)}, but declares {site.out_features}"
    return reason


def refuse_unsupported(reasons: dict[str, str]) -> None:
    """Raises: TargetError if `reasons`, of layers that a setting names, are not empty."""
    if reasons:
        raise TargetError(
            f"{len(reasons)} of the named layers cannot be adapted.",
            layers=listed(f"{name} {reason}" for name, reason in reasons.items()),
            fix="leave them out: exclude_modules, or other target_modules",
        )


def describe_module(model: nn.Module, entry: str) -> str | None:
    """What the module called `entry` is, for a name that selects no site; None: there is none."""
    for name, module in model.named_modules():
        if ADAPTERS not in name.split(".") and (name == entry or name.endswith(f".{entry}")):
            kind = type(module).__name__
            has_children = any(True for _ in module.children())
            return f"{name} is a {kind}" + (" with layers of its own" if has_children else "")
    return None
