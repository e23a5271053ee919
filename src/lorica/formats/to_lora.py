"""An adapter once more on its own model, as a plain LoRA with the scale 1.

Layers of modules_to_save and token rows come along as they are; so do the norms of a method
that trains them, as layers to save.
"""

from collections import Counter

import torch
from torch import nn

from lorica.core.adapter import Adapter
from lorica.core.attach import attach
from lorica.core.port import Spec, ports, spec_of
from lorica.core.site import Site, sites_of
from lorica.core.targets import Targets, leaf_names, saved_sites
from lorica.core.whole import TokenRows, Whole
from lorica.errors import MergeError
from lorica.formats.low_rank import Reduced, reduced, refusal
from lorica.methods.lora import Lora, LoraAdapter


def parts(model: nn.Module, name: str, rank: int | None) -> list[tuple[Site, Reduced]]:
    """Every site that the method of adapter `name` acts on, reduced. Raises: MergeError."""
    own, _ = _divided(model, name)
    plain = [(site, adapter) for site, adapter in own if site.kind != "other"]
    method = spec_of(model, name).method.name
    refusal(own if rank is None else plain, method, rank)
    return [(site, reduced(site, adapter, rank)) for site, adapter in plain]


def attach_lora(
    model: nn.Module, name: str, found: list[tuple[Site, Reduced]], new_name: str
) -> None:
    """Attach adapter `name` once more as `new_name`, the plain LoRA of `found`. In place."""
    targets = spec_of(model, name).targets
    own, kept = _divided(model, name)
    live = [(site, part) for site, part in found if part.r or part.shift is not None]
    live = live or found[:1]  # a LoRA has a target, though it may do nothing
    ranks = {site.name: max(part.r, 1) for site, part in live}
    if not live:
        raise MergeError(
            "the adapter has no linear or embedding layer: there is no LoRA in it.",
            fix="write a plain model with lorica merge",
        )
    biased = any(part.shift is not None for _, part in live)
    if biased and (tables := [site.name for site, _ in live if site.kind == "embedding"]):
        raise MergeError(
            f"the adapter changes biases, and {tables[0]}: no LoRA of PEFT's does both.",
            fix="write a plain model with lorica merge",
        )
    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {site: n for site, n in ranks.items() if n != r}
    whole = [site for site, _ in own if site.kind == "other"]
    every = sites_of(model, ("linear", "embedding", "other"))
    spec = Spec(
        Lora(r=r, alpha=r, lora_bias=biased),
        Targets(
            target_modules=leaf_names([site for site, _ in live], every),
            rank_pattern=others,
            alpha_pattern={site: float(n) for site, n in others.items()},
            modules_to_save=[*targets.modules_to_save, *(site.name for site in whole)],
            trainable_token_indices=targets.trainable_token_indices,
        ),
        seed=0,
    )
    attach(model, spec, new_name)
    new = {site: port[new_name] for site, _, port in ports(model) if new_name in port}
    _fill(new, live)
    _keep(new, [*kept, *((site, adapter) for site, adapter in own if site.kind == "other")])


@torch.no_grad()
def _fill(new: dict[str, nn.Module], live: list[tuple[Site, Reduced]]) -> None:
    for site, part in live:
        lora = new[site.name]
        assert isinstance(lora, LoraAdapter)
        lora.b.zero_()
        if part.r:
            lora.a.copy_(part.a)
            lora.b.copy_(part.b)
        if lora.bias is not None and part.shift is not None:
            lora.bias.copy_(part.shift)


def _keep(new: dict[str, nn.Module], kept: list[tuple[Site, Adapter]]) -> None:
    """Layers and rows that are trained whole, copied; what shares a tensor goes on sharing it."""
    copies: dict[int, nn.Parameter] = {}
    for site, adapter in kept:
        for key, parameter in adapter.named_parameters():
            copy = nn.Parameter(parameter.detach().clone())
            setattr(new[site.name], key, copies.setdefault(id(parameter), copy))


def _divided(
    model: nn.Module, name: str
) -> tuple[list[tuple[Site, Adapter]], list[tuple[Site, Adapter]]]:
    """The adapters of `name`: those that its method built, and those beside any method."""
    saved = {s.name for s in saved_sites(model, spec_of(model, name).targets.modules_to_save)}
    every: list[tuple[Site, Adapter]] = [
        (port.site(site, module), port[name])  # type: ignore[misc]
        for site, module, port in ports(model)
        if name in port
    ]
    beside = [
        isinstance(a, TokenRows) or (isinstance(a, Whole) and s.name in saved) for s, a in every
    ]
    own = [pair for pair, aside in zip(every, beside, strict=True) if not aside]
    return own, [pair for pair, aside in zip(every, beside, strict=True) if aside]
