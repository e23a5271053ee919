"""Attach the update of an adapter once more, as a plain LoRA with the scale 1.

Layers of modules_to_save and token rows are copied as they are; so are the norms of a method that
trains them, as layers to save.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from lorica.core.adapter import Adapter
from lorica.core.attach import attach
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.modules_to_save import ModuleCopy, TrainableTokens
from lorica.core.site import Site, sites_of
from lorica.core.targets import Targets, leaf_names, saved_sites
from lorica.errors import MergeError
from lorica.formats.low_rank import LowRankUpdate, check_reducible, low_rank_update
from lorica.methods.lora import Lora, LoraAdapter

Updates = list[tuple[Site, LowRankUpdate]]
Sites = list[tuple[Site, Adapter]]


def low_rank_updates(model: nn.Module, name: str, rank: int | None) -> Updates:
    """The update of every site that the method of adapter `name` acts on.

    rank: the largest of a site; None: exact. Raises: MergeError if there is no such LoRA.
    """
    of_method, _ = of_method_and_whole(model, name)
    weights = [(site, adapter) for site, adapter in of_method if site.kind != "other"]
    check_reducible(of_method if rank is None else weights, spec_of(model, name).method.name, rank)
    return [(site, low_rank_update(site, adapter, rank)) for site, adapter in weights]


def attach_lora(
    model: nn.Module, name: str, updates: Updates, new_name: str, *, one_rank: bool = False
) -> None:
    """Attach the plain LoRA of `updates` and the rest of adapter `name` as `new_name`. In place.

    one_rank: every site has the largest rank; the components above its own are zero.
    """
    targets = spec_of(model, name).targets
    of_method, others = of_method_and_whole(model, name)
    live = [(site, update) for site, update in updates if update.r or update.shift is not None]
    live = live or updates[:1]  # a LoRA has a target, though it may do nothing
    ranks = {site.name: max(update.r, 1) for site, update in live}
    if one_rank:
        ranks = dict.fromkeys(ranks, max(ranks.values(), default=1))
    if not live:
        raise MergeError(
            "the adapter has no linear or embedding layer: there is no LoRA in it.",
            fix="write a plain model with lorica merge",
        )
    biased = any(update.shift is not None for _, update in live)
    if biased and (tables := [site.name for site, _ in live if site.kind == "embedding"]):
        raise MergeError(
            f"the adapter changes biases, and {tables[0]}: a LoRA of PEFT's cannot do both.",
            fix="write a plain model with lorica merge",
        )
    r = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {site: n for site, n in ranks.items() if n != r}
    norms = [(site, adapter) for site, adapter in of_method if site.kind == "other"]
    every = sites_of(model, ("linear", "embedding", "other"))
    spec = Spec(
        Lora(r=r, alpha=r, lora_bias=biased),
        Targets(
            target_modules=leaf_names([site for site, _ in live], every),
            rank_pattern=pattern,
            alpha_pattern={site: float(n) for site, n in pattern.items()},
            modules_to_save=[*targets.modules_to_save, *(site.name for site, _ in norms)],
            trainable_token_indices=targets.trainable_token_indices,
        ),
        seed=0,
    )
    attach(model, spec, new_name)
    new = attached(model, new_name).every
    _fill(new, live)
    _copy_whole(new, [*others, *norms])


@torch.no_grad()
def _fill(new: Mapping[str, nn.Module], live: Updates) -> None:
    """Copy the factors of each update into its LoRA. In place."""
    for site, update in live:
        lora = new[site.name]
        assert isinstance(lora, LoraAdapter)
        lora.a.zero_()
        lora.b.zero_()
        lora.a[: update.r] = update.a
        lora.b[:, : update.r] = update.b
        if lora.bias is not None and update.shift is not None:
            lora.bias.copy_(update.shift)


def _copy_whole(new: Mapping[str, nn.Module], sites: Sites) -> None:
    """Copy layers and rows that are trained whole; those that share a tensor still share it."""
    copies: dict[int, nn.Parameter] = {}
    for site, adapter in sites:
        for key, parameter in adapter.named_parameters():
            copy = nn.Parameter(parameter.detach().clone())
            new[site.name].register_parameter(key, copies.setdefault(id(parameter), copy))


def of_method_and_whole(model: nn.Module, name: str) -> tuple[Sites, Sites]:
    """The adapters of `name`: those of its method, and those of layers and rows trained whole."""
    saved = {s.name for s in saved_sites(model, spec_of(model, name).targets.modules_to_save)}
    of_method, others = Sites(), Sites()
    own = attached(model, name)
    for site_name, adapter in own.every.items():
        site = own.sites[site_name]
        whole = isinstance(adapter, ModuleCopy) and site.name in saved
        group = others if whole or isinstance(adapter, TrainableTokens) else of_method
        group.append((site, adapter))  # type: ignore[arg-type]
    return of_method, others
