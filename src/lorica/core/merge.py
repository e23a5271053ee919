"""Fold adapters into the base: merging is evaluation on the identity.

An affine layer is known from its values at 0 and at the basis vectors, so no method has to
supply a merge of its own; those with a cheap closed form may. All is computed in float32 and
rounded once, to the base's dtype.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer
from lorica.core.attach import detach
from lorica.core.bank import LayerAdapters, adapted_layers, bank_of
from lorica.core.modes import in_mode
from lorica.core.site import Site, action, config_of, tied
from lorica.core.state import adapter_state, not_finite
from lorica.errors import MergeError, listed


@torch.no_grad()
def merge(model: nn.Module, *, after: Callable[[str], None] = lambda name: None) -> list[str]:
    """Fold the active adapters into the base's weights and remove every adapter. In place.

    Layers keep their type; packed layers become nn.Linear. Tensors that were tied and are
    merged to different values are untied.

    after: called with the name of each layer after it was merged.

    Returns: notices on what was untied or left out.
    Raises: MergeError, before anything is written, if an adapter is not affine or not
        finite, or a layer computes more than its weight.
    """
    adapted, notices = checked_layers(model)
    groups = tied(model)
    with_new_bias = []
    for site, layer_adapters in adapted:
        if _write(model, site, layer_adapters):
            with_new_bias.append(site.name)
        after(site.name)
    if with_new_bias:
        notices.append(new_bias_notice(with_new_bias))
    notices += _retie(model, groups, {site.name for site, _ in adapted})
    detach(model)
    return notices


@torch.no_grad()
def checked_layers(
    model: nn.Module, *, after: Callable[[str], None] = lambda name: None
) -> tuple[list[tuple[Site, LayerAdapters]], list[str]]:
    """The layers that have an active adapter, after a check that each can be merged.

    after: called with the name of each layer after it was checked.
    Returns: the layers, and notices. Raises: as `merge`.
    """
    bank = bank_of(model)
    notices = [
        f"adapter {n!r} was not active and is dropped" for n in bank.specs if n not in bank.acting
    ]
    layers = [layer for layer in adapted_layers(model) if layer.adapters.acting_adapters()]
    adapted = [(layer.adapters.as_site(layer.module), layer.adapters) for layer in layers]
    if not adapted:
        raise MergeError("no adapter is active: there is nothing to merge.", fix="activate() one")
    for name in bank.acting:
        if broken := not_finite(adapter_state(model, name)):
            raise MergeError(
                f"adapter {name!r} has NaN or infinite numbers, and is not merged.",
                tensors=listed(broken),
                fix="train it again with a lower learning rate",
            )
    for site, layer_adapters in adapted:
        _check(site, layer_adapters.acting_adapters())
        after(site.name)
    return adapted, notices


def new_bias_notice(layers: Sequence[str]) -> str:
    return (
        f"{listed(layers)} had no bias and has one now: a loader that builds the model "
        "from its config ignores such tensors"
    )


def untied_notice(members: Sequence[tuple[str, str]]) -> str:
    """members: (layer, parameter) of tensors that were one."""
    names = " and ".join(f"{name}.{key}" for name, key in members)
    return f"untied {names}: the adapter changed one of them and not the other"


@torch.no_grad()
def merged_tensors(site: Site, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The tensors of the merged layer in its own layout, by parameter, before they are rounded."""
    if site.kind == "other":
        return {key: tensor.detach() for key, tensor in adapters[-1].named_parameters()}
    weight, bias = merged(site, adapters)
    own = weight.mT.contiguous() if site.transposed else weight
    return {site.parameter: own, **({} if bias is None else {"bias": bias})}


def merged(site: Site, adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor | None]:
    """The adapted layer as float32 (weight (O, I), bias (O,) or None); of experts (E, O, I).

    Adapters that replace the layer's tensors come first, as in the forward pass. A closed form is
    that of one adapter: where several act, the adapted layer is evaluated instead.
    """
    weight, bias = site.dense()
    replacing = [a for a in adapters if a.weights(site.module)]
    for adapter in replacing:
        weight, bias = adapter.merged(weight, bias) or (weight, bias)
    rest = [a for a in adapters if a not in replacing]
    if not rest:
        return weight, bias
    closed = rest[0].merged(weight, bias) if len(rest) == len(adapters) == 1 else None
    new, shift = closed or evaluated(site, rest, weight, bias)
    if site.padding_idx is not None:
        new = new.clone()
        new[:, site.padding_idx] = weight[:, site.padding_idx]  # adapters do not act on padding
    return new, shift


def evaluated(
    site: Site, adapters: Sequence[Adapter], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`merged` without closed forms: the adapted layer evaluated on every basis vector."""
    with in_mode(nn.ModuleList(adapters), training=False):
        if site.kind == "embedding":
            ids = torch.arange(site.in_features, device=weight.device)
            new, shift = adapted_layer(adapters, ids, lambda h: F.embedding(h, weight.T)).T, bias
        else:
            layer = lambda x: adapted_layer(adapters, x, lambda h: F.linear(h, weight, bias))  # noqa: E731
            new, shift = action(layer, site.in_features, like=weight)
    return new, shift if shift is not None and (bias is not None or shift.any()) else None


def adapted_layer(adapters: Sequence[Adapter], x: Tensor, base: BaseLayer) -> Tensor:
    """The adapted layer, written out: the definition that the hooks must agree with."""
    for adapter in adapters:
        x = adapter.before(x)
    y = base(x)
    for adapter in adapters:
        y = adapter.after(x, y, base)
    return y


def _check(site: Site, adapters: list[Adapter]) -> None:
    """Raises: MergeError for adapters without a dense equivalent, and for layers that compute more
    than their weight."""
    for adapter in adapters:
        if not adapter.affine:
            raise MergeError(
                f"{type(adapter).__name__} at {site.name} is not affine: it has no weight.",
                fix="use the adapter unmerged",
            )
    if site.kind in ("other", "expert") or not site.is_dense:
        return
    weight, bias = site.dense()
    if site.kind == "embedding":
        x = torch.linspace(0, site.in_features - 1, 7, device=weight.device).long()
        want = F.embedding(x, weight.T) * site.gain
    else:
        x = torch.linspace(-1, 1, 3 * site.in_features, device=weight.device)
        x = x.view(3, -1).to(site.like.dtype)
        want = F.linear(x.float(), weight, bias)
    error = (site.module.forward(x).float() - want).abs().max()
    if error > 0.05 * want.abs().max() + 1e-6:
        raise MergeError(
            f"{site.name} ({type(site.module).__name__}) computes more than its weight.",
            difference=f"{error:.3g} of {want.abs().max():.3g}",
            fix="leave this layer out of target_modules, or use the adapter unmerged",
        )


def _write(model: nn.Module, site: Site, layer_adapters: LayerAdapters) -> bool:
    """Write the merged tensors. In place. Returns: whether the layer has a new bias."""
    if site.kind == "other":
        for key, tensor in layer_adapters.acting_adapters()[-1].named_parameters():
            own = site.module._parameters[key]
            site.module._parameters[key] = nn.Parameter(tensor.to(own), requires_grad=False)  # type: ignore[arg-type]
        return False
    weight, bias = merged(site, layer_adapters.acting_adapters())
    new = bias is not None and not site.has_bias
    if site.is_dense and (bias is None or "bias" in site.module._parameters):
        site.write(weight, bias)
        return new
    with torch.device("meta"):
        dense = nn.Linear(site.in_features, site.out_features, bias=bias is not None)
    dense.weight = nn.Parameter(weight.to(site.like), requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias.to(site.like), requires_grad=False)
    dense.adapters = layer_adapters  # detach() finds it, and takes it off
    model.set_submodule(site.name, dense)
    return new


def _retie(model: nn.Module, groups: list[list[tuple[str, str]]], changed: set[str]) -> list[str]:
    """Tie again what was merged to equal values. In place. Returns: notices on what was untied."""
    notices = []
    for members in groups:
        if not changed & {name for name, _ in members}:
            continue
        own = [model.get_submodule(name)._parameters for name, _ in members]
        first = own[0][members[0][1]]
        if all(torch.equal(first, o[k]) for o, (_, k) in zip(own, members, strict=True)):  # type: ignore[arg-type]
            for parameters, (_, key) in zip(own, members, strict=True):
                parameters[key] = first
            continue
        if (config := config_of(model)) is not None:
            config.tie_word_embeddings = False
        notices.append(untied_notice(members))
    return notices
