"""The tensors of a merged model, each computed when it is asked for.

A layer's tensors are computed in float32 from the base's weights and the adapters that act on it.
Neither the base nor the adapters are changed. Layers without an adapter give their own tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorica.base.footprint import quantised_layers
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.merge_quantised import float_tensors
from lorica.base.quantise import PARTS, QuantisedLinear
from lorica.core.adapter import Adapter
from lorica.core.merge import checked_layers, merged, merged_tensors
from lorica.core.site import ADAPTERS, Site, sites_of, tied

Members = list[tuple[str, str]]
"""(layer, parameter) of tensors that are one."""


@dataclass(frozen=True)
class MergedLayer:
    """Tensors that are computed together. shapes: by their names in the model's state.

    optional: the name of a bias that the adapter may add. sources: the weights that are read,
    whose mapped pages are released afterwards.
    """

    shapes: dict[str, tuple[int, ...]]
    compute: Callable[[], dict[str, Tensor]]
    sources: list[Tensor]
    optional: str | None = None


@dataclass(frozen=True)
class MergedLayers:
    """A merged model. same: name -> name of the tensor that it is tied to, or its own name.

    dtypes: of the tensors in the base by name, for those that are no floats.
    untied: tensors that were one before. notices: on adapters that are left out.
    """

    layers: list[MergedLayer]
    same: dict[str, str]
    dtypes: dict[str, torch.dtype]
    untied: list[Members] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@torch.no_grad()
def merged_layers(model: nn.Module, target: str | None, dtype: torch.dtype) -> MergedLayers | None:
    """The merged tensors of a model with active adapters, in model order.

    target: "dequant", "original" or None, of a quantised base. dtype: of the written floats.
    Returns: None if a layer keeps its weight in a way that has no name of its own.
    Raises: MergeError as `merge`.
    """
    ranges, sites = mapped_weights(), {site.name: site for site in sites_of(model)}

    def release(name: str) -> None:
        if name in sites and (weight := sites[name].weight) is not None:
            release_pages(weight, ranges)

    adapted, notices = checked_layers(model, after=release)
    acting = {site.name: (site, own.acting_adapters()) for site, own in adapted}
    packed = quantised_layers(model)
    if any(
        site.kind not in ("other", "expert") and not site.is_dense and name not in packed
        for name, (site, _) in acting.items()
    ):
        return None
    state = _state(model)
    order = {name: i for i, name in enumerate(state)}
    for name in packed:
        order[f"{name}.weight"] = order[f"{name}.codes"]
        for part in PARTS:
            state.pop(f"{name}.{part}", None)
    untied = _untied(model, acting, dtype)
    layers = [
        _packed_layer(name, layer, acting.get(name), target) for name, layer in packed.items()
    ]
    layers += [_adapted_layer(*own) for name, own in acting.items() if name not in packed]
    changed = {name for layer in layers for name in layer.shapes}
    layers += [
        MergedLayer({name: tuple(tensor.shape)}, _copied(name, tensor), [tensor])
        for name, tensor in state.items()
        if name not in changed
    ]
    same = _same(state, untied)
    same |= {name: name for name in changed if name not in state}
    same |= {layer.optional: layer.optional for layer in layers if layer.optional is not None}
    layers.sort(key=lambda layer: min(order.get(name, -1) for name in layer.shapes))
    dtypes = {name: t.dtype for name, t in state.items() if not t.is_floating_point()}
    return MergedLayers(layers, same, dtypes, untied, notices)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint of the base holds: the parameters themselves, and the buffers."""
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if ADAPTERS not in name.split(".")}


def _copied(name: str, tensor: Tensor) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: tensor.detach()}


def _adapted_layer(site: Site, adapters: list[Adapter]) -> MergedLayer:
    prefix = site.name.removesuffix(f".{site.parameter}") if site.kind == "expert" else site.name
    own = site.module._parameters
    keys = [key for key, _ in adapters[-1].named_parameters()] if site.kind == "other" else []
    keys = keys or [site.parameter, *(["bias"] if site.has_bias else [])]
    shapes = {f"{prefix}.{k}": tuple(t.shape) for k in keys if (t := own.get(k)) is not None}

    def compute() -> dict[str, Tensor]:
        return {f"{prefix}.{k}": t for k, t in merged_tensors(site, adapters).items()}

    optional = f"{prefix}.bias" if site.kind == "linear" and not site.has_bias else None
    return MergedLayer(shapes, compute, [t for t in own.values() if t is not None], optional)


def _packed_layer(
    name: str,
    layer: QuantisedLinear,
    adapted: tuple[Site, list[Adapter]] | None,
    target: str | None,
) -> MergedLayer:
    """The float layer that a quantised layer becomes."""

    def compute() -> dict[str, Tensor]:
        weight, bias = layer.unpacked() if adapted is None else merged(*adapted)
        tensors = float_tensors(layer, weight, bias, target)
        return {f"{name}.{key}": tensor for key, tensor in tensors.items()}

    shape = (layer.out_features, layer.in_features)
    shapes = {f"{name}.weight": shape[::-1] if layer.transposed else shape}
    has_bias = layer.bias is not None or layer.transposed
    if has_bias:
        shapes[f"{name}.bias"] = (layer.out_features,)
    return MergedLayer(shapes, compute, [], None if has_bias else f"{name}.bias")


def _untied(
    model: nn.Module, acting: Mapping[str, tuple[Site, list[Adapter]]], dtype: torch.dtype
) -> list[Members]:
    """The tied tensors that adapters change to different values."""

    def value(name: str, key: str) -> Tensor:
        new = merged_tensors(*acting[name]).get(key) if name in acting else None
        own = model.get_submodule(name)._parameters[key] if new is None else new
        assert own is not None
        return own.detach().to(dtype)

    untied = []
    for members in tied(model):
        if not acting.keys() & {name for name, _ in members}:
            continue
        first = value(*members[0])
        if not all(torch.equal(first, value(*member)) for member in members[1:]):
            untied.append(members)
    return untied


def _same(state: Mapping[str, Tensor], untied: list[Members]) -> dict[str, str]:
    """Of each name the first name of its tensor; those that are untied keep their own."""
    own = {f"{name}.{key}" for members in untied for name, key in members}
    first: dict[int, str] = {}
    return {
        name: name if name in own else first.setdefault(id(tensor), name)
        for name, tensor in state.items()
    }
