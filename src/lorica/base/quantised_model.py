"""A whole base in a few bits a weight: what is packed, what is not, and what it takes.

transformers and bitsandbytes pack each tensor as it is read, so that the float base is never in
memory as a whole; then our own layers take over (see quantise.py). Packing is done on the CPU
from float32, whatever the base's dtype and device are: the codes of a base are the same in each
of its runs. Embeddings, norms, the output head and every other layer outside of the decoder
(the head of a classifier) stay as they are.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base import original
from lorica.base.fingerprint import sampled
from lorica.base.quantise import PARTS, QuantisedLinear, require, taken_over
from lorica.core.site import PORT, output_head, sites_of
from lorica.errors import BaseError, listed

MARKS = ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit",
         "is_loaded_in_8bit", "hf_device_map")  # fmt: skip
ON_CPU = {"dtype": torch.float32, "device_map": {"": "cpu"}}


def options(kind: str, kept: list[str], *, double: bool) -> dict[str, Any]:
    """How transformers loads a float checkpoint so that all linear layers but `kept` are packed."""
    require()
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True} if kind == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double,
    }  # fmt: skip
    config: Any = BitsAndBytesConfig(**settings, llm_int8_skip_modules=kept)
    return {"quantization_config": config, **ON_CPU}


def outside(model: nn.Module) -> list[str]:
    """Linear layers outside of the decoder: the output head, or the layers of a classifier's."""
    decoder: Any = getattr(model, "base_model", model)
    inside = {id(module) for module in decoder.modules()}
    head = output_head(model)
    return [s.name for s in sites_of(model) if s.module is head or id(s.module) not in inside]


def take_over(
    model: nn.Module, path: str, dtype: torch.dtype, skeleton: nn.Module, *, packed_here: bool
) -> None:
    """Make layers of bitsandbytes ours, and the rest of `dtype`. In place.

    path: folder or hub id of the base. skeleton: the float model, on no device.
    packed_here: the checkpoint holds the original weights.

    Raises: BaseError if nothing was packed.
    """
    foreign: Any = model
    for mark in MARKS:
        foreign.__dict__.pop(mark, None)
    if hasattr(foreign.config, "quantization_config"):
        del foreign.config.quantization_config
    for name, module in list(model.named_modules()):
        if (layer := taken_over(module)) is not None:
            model.set_submodule(name, layer)
    if not layers(model):
        raise BaseError(
            f"{path} has no linear layer that can be packed.", fix="load it without quantisation"
        )
    _remember(model, path if packed_here else None, skeleton)
    keep = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in model.named_parameters():
        if not set(name.split(".")) & set(keep):
            parameter.data = parameter.data.to(dtype)
    table = next(
        (layer.table for layer in layers(model).values() if layer.double_quantisation), None
    )
    for layer in layers(model).values():
        layer.like = layer.like.to(dtype)
        if layer.table is not None and table is not None and torch.equal(layer.table, table):
            layer.table = table  # one for all
    foreign.config.dtype = dtype
    # Each process has read the same files: nothing of the codes need go from one to another.
    parts = [f"{name}.{part}" for name in layers(model) for part in (*PARTS, "like")]
    foreign._ddp_params_and_buffers_to_ignore = parts


def _remember(model: nn.Module, path: str | None, skeleton: nn.Module) -> None:
    """Tell each packed layer what it stands for, and where its original weight is. In place."""
    keys = {} if path is None else original.keys_of(path)
    prefix = str(getattr(model, "base_model_prefix", ""))
    found, right = layers(model), dict[str, bool]()
    for site in sites_of(skeleton):
        layer, key = found.get(site.name), original.key_of(site.name, keys, prefix)
        if layer is None:
            continue
        layer.transposed = site.transposed
        if key is None:
            continue
        read = partial(original.read, keys[key], key, site.transposed)
        # A loader may turn what a file holds, by the layer's name: one of each name is compared.
        leaf = site.name.rpartition(".")[2]
        if leaf not in right:
            right[leaf] = stands_for(layer, read())
        if right[leaf]:
            layer.original_weight = read
            layer.original_sample = sampled(original.values(keys[key], key))


def stands_for(layer: QuantisedLinear, weight: Tensor) -> bool:
    """The codes of `layer` came from `weight`: 4 bits move a normal weight by about a tenth."""
    if weight.shape != (layer.out_features, layer.in_features):
        return False
    weight = weight.float()
    return bool((layer.weight_as(torch.float32) - weight).norm() <= 0.5 * weight.norm())


def layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The packed layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantisedLinear)}


@dataclass(frozen=True)
class Footprint:
    """What the weights of a base take.

    parameters: all, each tied one once. bytes: measured. bytes_in_bfloat16: without quantisation.
    quantisation: of its packed layers; packed: how many there are; bits_per_parameter: of theirs.
    """

    parameters: int
    bytes: int
    bytes_in_bfloat16: int
    quantisation: str | None = None
    double_quantisation: bool = False
    packed: int = 0
    bits_per_parameter: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def footprint(model: nn.Module) -> Footprint:
    """Of the base under any adapters."""
    held: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if PORT in name.split("."):
            continue
        own = [p for p in module._parameters.values() if p is not None]
        if isinstance(module, QuantisedLinear):
            own += [b for b in module._buffers.values() if b is not None]
        held |= {tensor.data_ptr(): tensor for tensor in own if tensor.numel()}
    packed = list(layers(model).values())
    weights = [layer.in_features * layer.out_features for layer in packed]
    codes = {part.data_ptr() for layer in packed for part in layer.buffers()}
    floats = sum(t.numel() for address, t in held.items() if address not in codes)
    parameters = floats + sum(weights)
    bits = sum(n * layer.bits_per_parameter for n, layer in zip(weights, packed, strict=True))
    return Footprint(
        parameters=parameters,
        bytes=sum(t.numel() * t.element_size() for t in held.values()),
        bytes_in_bfloat16=2 * parameters,
        quantisation=packed[0].kind if packed else None,
        double_quantisation=any(layer.double_quantisation for layer in packed),
        packed=len(packed),
        bits_per_parameter=bits / sum(weights) if packed else None,
    )


def said(model: nn.Module) -> list[str]:
    """Named lines on what is packed, and what the weights take."""
    found = footprint(model)
    if found.bits_per_parameter is None:
        return []
    rest = [s.name for s in sites_of(model) if not isinstance(s.module, QuantisedLinear)]
    unknown = sum(not hasattr(layer, "original_weight") for layer in layers(model).values())
    double = " with double quantisation" if found.double_quantisation else ""
    packed = (
        f"{found.quantisation}{double}: {found.packed} linear layers are packed, at "
        f"{found.bits_per_parameter:.3f} bits per parameter; not packed: {listed(rest)}"
    )
    held = (
        f"the weights take {found.bytes:,} bytes in memory; in bfloat16 they would take "
        f"{found.bytes_in_bfloat16:,}"
    )
    lost = [f"the original weights of {unknown} packed layers are not known"] if unknown else []
    return [packed, held, *lost]


def checkpoint_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state, quantization_config) of a model as bitsandbytes and transformers keep it on disk."""
    state, packed = dict(model.state_dict()), layers(model)
    for name, layer in packed.items():
        for part in PARTS:
            state.pop(f"{name}.{part}", None)
        if layer.kind == "int8":
            state[f"{name}.weight"] = layer.codes
            state[f"{name}.SCB"] = layer.scales.view(torch.float32)
            state[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)  # row by row
            continue
        state[f"{name}.weight"] = layer.codes.unsqueeze(1)
        held = layer.state(torch.float32)
        held.shape = torch.Size((layer.out_features, layer.in_features))
        for key, tensor in held.as_dict(packed=True).items():
            state[f"{name}.weight.{key}"] = tensor.clone()
    kept = [site.name for site in sites_of(model) if site.name not in packed]
    first = next(iter(packed.values()))
    config = options(first.kind, kept, double=first.double_quantisation)["quantization_config"]
    return state, config.to_dict()
