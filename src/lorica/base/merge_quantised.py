"""Merge an adapter into a quantised base, in one of three ways.

    dequant   the dequantised weights plus the update: exactly the model that training saw
    original  the original weights plus the update: without the error of quantisation, which
              training had seen, so this is another model
    requant   the merged weights, quantised again: rounded as the base was

For a method that is not a plain sum (DoRA), the update is its change of the quantised weight.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lorica.base.footprint import quantised_layers
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.quantise import QuantisedLinear, quantise
from lorica.core.merge import merge
from lorica.core.site import Site, site_of, sites_of
from lorica.errors import ConfigError, MergeError, listed

Target = Literal["dequant", "original", "requant"]
TARGETS: tuple[str, ...] = get_args(Target)


def check_target(target: str | None, model: nn.Module, path: str) -> None:
    """Raises: ConfigError, MergeError if a quantised base is needed, or its original weights."""
    packed = quantised_layers(model)
    if target is not None and not packed:
        raise ConfigError(
            f"target is {target!r}, and {path} is not quantised here.", fix="leave target out"
        )
    unknown = [name for name, layer in packed.items() if layer.original_weight is None]
    if target == "original" and unknown:
        raise MergeError(
            f"the original weights of {len(unknown)} layers are not known.",
            layers=listed(unknown),
            fix="--target dequant; or quantise the float checkpoint instead",
        )


@torch.no_grad()
def merged_into(
    model: nn.Module, target: str | None, dtype: torch.dtype = torch.float32
) -> list[str]:
    """Merge the active adapters, and convert every quantised layer to `target`. In place.

    target: None is "dequant". Layers without an adapter are treated alike; "requant" leaves the
        codes of those as they are. dtype: of the floats that quantised layers become.

    One layer at a time is computed in float32, and the memory of its old weight is released.
    Returns: notices. Raises: MergeError.
    """
    packed, ranges = quantised_layers(model), mapped_weights()
    weights = {site.name: site.module._parameters.get("weight") for site in sites_of(model)}

    def finish(name: str) -> None:
        if (layer := packed.pop(name, None)) is not None:
            model.set_submodule(name, _float_or_packed(model, name, layer, target, dtype))
        elif (weight := weights.get(name)) is not None:
            release_pages(weight, ranges)

    notices = merge(model, after=finish)
    if target != "requant":
        for name in list(packed):
            finish(name)
    return notices


def _float_or_packed(
    model: nn.Module, name: str, layer: QuantisedLinear, target: str | None, dtype: torch.dtype
) -> nn.Module:
    """The layer that replaces `layer`, from the merged layer in its place."""
    now = site_of(name, model.get_submodule(name))
    assert now is not None
    if target != "requant":
        return _dense(layer, now, target).to(dtype)
    again = quantise(now.module, layer.kind, double=layer.double_quantisation)
    again.transposed = layer.transposed
    return again


def _dense(layer: QuantisedLinear, now: Site, target: str | None) -> nn.Module:
    """The float layer that replaces `layer`. now: the merged layer in its place."""
    weight, bias = now.dense()
    weight = float_weight(layer, weight, target)
    return _conv1d(weight, bias) if layer.transposed else _linear(weight, bias)


def float_weight(layer: QuantisedLinear, merged: Tensor, target: str | None) -> Tensor:
    """`merged`, the merged weight of `layer` (O, I), or with target "original" the original weight
    plus the update."""
    if target != "original":
        return merged
    before = Site("", layer, "linear", layer.in_features, layer.out_features)
    original = before.original()
    assert original is not None  # check_target
    return merged + (original - before.dense()[0])


def float_tensors(
    layer: QuantisedLinear, merged: Tensor, bias: Tensor | None, target: str | None
) -> dict[str, Tensor]:
    """Weight and bias of the float layer that replaces `layer`, in its layout, float32.

    merged: its merged weight (O, I). target: "dequant", "original" or None.
    """
    weight = float_weight(layer, merged, target)
    if layer.transposed:  # Conv1D always has a bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        weight = weight.T.contiguous()
    return {"weight": weight, **({} if bias is None else {"bias": bias})}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.device("meta"):
        dense = nn.Linear(*weight.T.shape, bias=bias is not None)
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias, requires_grad=False)
    return dense


def _conv1d(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """transformers' layer whose weight is (I, O); it always has a bias."""
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        dense = Conv1D(*weight.shape)
    dense.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    dense.bias = nn.Parameter(
        weight.new_zeros(len(weight)) if bias is None else bias, requires_grad=False
    )
    return dense
