"""Attach adapters to a model, choose which of them are active, and detach them.

The modules of the base, their types and their parameter names do not change. An adapted layer gets
one child module, `adapters`, and hooks (core.hooks).

    model.layers.0.self_attn.q_proj                      the layer, unchanged
    model.layers.0.self_attn.q_proj.adapters.default     the adapter
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import nn

from lorica.core import attention
from lorica.core.adapter import Adapter, Method
from lorica.core.bank import (
    INSIDE,
    LayerAdapters,
    Spec,
    adapted_layers,
    adapters_at,
    bank_of,
    parameter_sums,
    remove_adapters,
    spec_of,
)
from lorica.core.blocks import innermost, routing, without_gradients
from lorica.core.draws import drawing
from lorica.core.hooks import hook_layer
from lorica.core.limits import check_sizes
from lorica.core.modules_to_save import ModuleCopies, ModuleCopy, TrainableTokens, token_sites
from lorica.core.route import ByRow, Everywhere, Route
from lorica.core.save_warning import restore_functions, warn_when_saved
from lorica.core.site import Site, sites_of
from lorica.core.site_names import first
from lorica.core.targets import Targets, check_experts, saved_sites, select
from lorica.errors import ConfigError, TargetError, closest, listed


def adapt(
    model: nn.Module, method: Method, *, name: str = "default", seed: int = 0, **targets: object
) -> nn.Module:
    """Freeze `model` and add a trainable adapter at every target. In place; returns `model`.

    targets: the fields of `Targets`: target_modules (default "all-linear"), exclude_modules,
        layers_to_transform, rank_pattern, alpha_pattern, target_parameters (experts),
        modules_to_save, trainable_token_indices.
    seed: of the random initialization; the global random state is not changed.

    Raises: ConfigError if `name` is taken or a setting is unknown; TargetError if a target
        selects nothing. The model is unchanged then.
    """
    known = [f.name for f in fields(Targets)]
    for key in targets.keys() - set(known):
        raise ConfigError(f"adapt() has no setting {key!r}.", closest=closest(key, known))
    return attach(model, Spec(method, Targets(**targets), seed), name)  # type: ignore[arg-type]


def attach(model: nn.Module, spec: Spec, name: str) -> nn.Module:
    """As `adapt`, from a Spec, for example one that was read from an adapter folder. In place."""
    _check_name(model, name)
    attach_built(model, spec, name, built := _build(model, spec))
    own = (adapter for _, adapter in built if not isinstance(adapter, ModuleCopy | TrainableTokens))
    bank_of(model).start[name] = parameter_sums(own)
    return model


def attach_built(
    model: nn.Module, spec: Spec, name: str, built: Sequence[tuple[Site, Adapter]]
) -> None:
    """Attach adapters that were built for these sites of `model`, and activate them. In place.

    Raises: ConfigError if `name` is taken.
    """
    _check_name(model, name)
    bank = bank_of(model)
    if not bank.specs:
        bank.were_trainable = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        model.requires_grad_(False)
        warn_when_saved(model)
    if bank.attention is None and any(s.kind in INSIDE for s, _ in built):
        bank.attention = attention.install(model)
    bank.specs[name] = spec
    for site, adapter in built:
        layer_adapters = adapters_at(site, bank)
        if not layer_adapters:
            layer_adapters.hook_handles = hook_layer(site)
        layer_adapters[name] = adapter.float().to(site.like.device).train(site.module.training)
    activate(model, name)


def _check_name(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if an adapter cannot have this name, or has it already."""
    bank = bank_of(model)
    taken = dir(LayerAdapters(Site("", model, "other", 0, 0), bank))  # "training", for one
    if not name.isidentifier() or name in taken:
        raise ConfigError(
            f"{name!r} is not a valid adapter name.",
            fix="use letters, digits and _, and no attribute name of torch.nn.Module",
        )
    if name in bank.specs:
        raise ConfigError(
            f"an adapter named {name!r} is already attached.",
            fix="pass another name=, or detach(model) first",
        )


def _build(model: nn.Module, spec: Spec) -> list[tuple[Site, Adapter]]:
    """Build every (site, adapter) of `spec`. The model is not changed."""
    method, targets = spec.method, spec.targets
    check_experts(targets, method.name, method.kinds)
    sites = select(model, targets, method.kinds, method.choose)
    own = {f.name for f in fields(method)}
    for key, pattern in (("r", targets.rank_pattern), ("alpha", targets.alpha_pattern)):
        if pattern and key not in own:
            raise ConfigError(f"{method.name} has no setting {key!r} that a pattern can change.")
    built: list[tuple[Site, Adapter]] = []
    with drawing(spec.seed):
        for site in sites:
            check_sizes(method, site)
        shared = method.share(sites)
        for site in sites:
            r, alpha = (first(p, site.name) for p in (targets.rank_pattern, targets.alpha_pattern))
            changed = {k: v for k, v in (("r", r), ("alpha", alpha)) if v is not None}
            own_method = method.for_site(**changed)
            check_sizes(own_method, site)
            built.append((site, own_method.build(site, shared)))
    copies = ModuleCopies()
    built += [(s, copies.build(s)) for s in saved_sites(model, targets.modules_to_save)]
    if targets.trainable_token_indices:
        rows = None
        for site in token_sites(model):
            adapter = TrainableTokens(site, targets.trainable_token_indices, rows)
            rows = adapter.rows
            built.append((site, adapter))
    counts = Counter(site.name for site, _ in built)
    if repeated := [site for site, count in counts.items() if count > 1]:
        raise TargetError(
            f"{listed(repeated)} is selected by two settings at once.",
            fix="select a layer by only one of target_modules, modules_to_save and "
            "trainable_token_indices (which includes a head that is tied to the embedding)",
        )
    return built


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Remove adapter `name`, or every adapter. In place; returns `model`.

    The base weights are never written to, so there is nothing to undo.
    """
    bank = bank_of(model)
    detached = list(bank.specs) if name is None else [name]
    route = bank.current
    if used := [n for n in detached if isinstance(route, ByRow) and n in route.names]:
        raise ConfigError(
            f"adapter {listed(used)} is used by an open block of mixed().",
            fix="detach it after the block",
        )
    for old in detached:
        spec_of(model, old)
        del bank.specs[old]
        bank.driven.discard(old)
        bank.start.pop(old, None)
    bank.route = Everywhere.of(n for n in bank.route.names if n not in detached)
    for layer in list(adapted_layers(model)):
        for old in detached:
            if old in layer.adapters:
                del layer.adapters[old]
        if not layer.adapters:
            remove_adapters(layer)
    if bank.attention and not any(p.kind in INSIDE for _, _, p in adapted_layers(model)):
        attention.uninstall(model, bank.attention)
        bank.attention = None
    if not bank.specs:
        restore_functions(model)
        for parameter_name, parameter in model.named_parameters():
            trains = parameter.requires_grad or parameter_name in bank.were_trainable
            parameter.requires_grad_(trains)
    return model


def activate(model: nn.Module, *names: str) -> None:
    """Make exactly `names` active and trainable; other adapters are inactive and frozen.

    Inside a block of `use` or `mixed` they replace the adapters of the block.
    """
    for name in names:
        spec_of(model, name)
    bank = bank_of(model)
    bank.route = Everywhere.of(names)
    if (block := innermost(bank)) is not None:
        block.route = None
    for _, _, layer_adapters in adapted_layers(model):
        for name, adapter in layer_adapters.items():
            for key, parameter in adapter.named_parameters():
                parameter.requires_grad_(name in names and key not in adapter.frozen)  # type: ignore[operator]


@contextmanager
def routed(model: nn.Module, route: Route) -> Iterator[None]:
    """Apply `route` inside the block, with gradients: for one forward pass and its backward pass.

    The backward pass must be in the block too, because activation checkpointing runs the forward
    pass again during it. All threads see the route, unless they are in a block of `use` or `mixed`.
    """
    bank = bank_of(model)
    before, bank.route = bank.route, route
    try:
        yield
    finally:
        bank.route = before


@contextmanager
def use(model: nn.Module, *names: str) -> Iterator[nn.Module]:
    """Run with exactly `names` (none: the base model) inside the block, without gradients.

    The innermost block wins. A block holds only for the thread and task that opened it. Gradients
    are off, because activation checkpointing runs the forward pass again during the backward pass,
    after the block, and would silently use other adapters.

    Blocks may be left in any order. A generator that pauses inside a block leaves it open until
    the generator ends or is closed.
    """
    for name in names:
        spec_of(model, name)
    with routing(bank_of(model), Everywhere.of(names)), without_gradients():
        yield model


@dataclass(frozen=True)
class Count:
    """The number of trainable parameters, and of all parameters of the base."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        return self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.3%})"


def trainable_parameters(model: nn.Module) -> Count:
    """Count the trainable parameters and those of the base; tied tensors count once.

    A quantised layer counts with the number of its float weights.
    """
    base: dict[int, int] = {}
    for site in sites_of(model, ("linear", "embedding", "other")):
        packed = site.kind == "linear" and not site.is_dense
        if packed:
            base[id(site.module)] = site.in_features * site.out_features
        for key, own in site.module._parameters.items():
            if own is not None and not (packed and key == "weight"):
                base[id(own)] = own.numel()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Count(trainable, sum(base.values()))


@contextmanager
def mixed(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Inside the block, row i of every batch (B, T) uses adapter names[i]; None: the base model.

        with lorica.mixed(model, ["french", "german", None]):
            model(input_ids)                    # three rows; the last uses the base model

    Without gradients, as in `use`.

    Raises: ConfigError if an adapter does not exist, or its method is the same for all rows of a
        batch; inside the block, if a batch has another number of rows.
    """
    if not names:
        raise ConfigError(
            "mixed() got no rows.", fix="name an adapter, or None for the base, for each row"
        )
    for name in {name for name in names if name is not None}:
        method = spec_of(model, name).method
        if not method.mixes or method.replaces_weights:
            raise ConfigError(
                f"adapter {name!r} is a {method.name}, which is the same for all rows of a batch.",
                fix="run its rows in a batch of their own",
            )
        targets = spec_of(model, name).targets
        if targets.modules_to_save or targets.trainable_token_indices:
            raise ConfigError(
                f"adapter {name!r} uses modules_to_save or trainable_token_indices, which "
                "apply to all rows of a batch.",
                fix="run its rows in a batch of their own",
            )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with routing(bank_of(model), ByRow.of(names, device)), without_gradients():
        yield model
