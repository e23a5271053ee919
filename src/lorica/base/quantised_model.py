"""Quantise the linear layers of a base, and report the memory of its weights.

Layers are quantised one after another, on the CPU, from the weights of the checkpoint. The dtype
and device of the run have no effect, so a base has the same codes in all runs (a GPU rounds
differently). The float weights are memory-mapped. The pages of a weight are released once it is
quantised, so that only one float weight at a time is in memory.

Embeddings, norms, the output head and all other layers outside the decoder (the head of a
classifier) are not quantised.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base import checkpoint_tensors
from lorica.base.bitsandbytes_layers import from_bitsandbytes
from lorica.base.codebook import BLOCK
from lorica.base.digest import digest
from lorica.base.footprint import footprint, quantised_layers
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.model_view import model_view
from lorica.base.quantise import PARTS, QuantisedLinear, quantise
from lorica.base.samples import sampled
from lorica.core.fused_experts import fused_weights
from lorica.core.site import Site, output_head, sites_of, tied
from lorica.errors import BaseError, ConfigError, listed
from lorica.progress import Progress

QUANTISATION_ATTRIBUTES = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "hf_device_map",
)


def layers_outside_decoder(model: nn.Module) -> list[str]:
    """Names of linear layers outside the decoder: the output head, or a classifier head."""
    inside = {id(module) for module in model_view(model).decoder.modules()}
    head = output_head(model)
    return [s.name for s in sites_of(model) if s.module is head or id(s.module) not in inside]


@torch.no_grad()
def quantise_model(
    model: nn.Module,
    path: str,
    dtype: torch.dtype,
    kind: str,
    *,
    double_quantisation: bool,
    whole: Sequence[str] = (),
) -> None:
    """Quantise the linear layers of a float base, and convert the rest to `dtype`. In place.

    path: folder or hub id of the base, from which float weights can be read again.
    whole: names of modules that are not quantised, because all their weights are trained.

    Raises: ConfigError for another kind; MissingError; BaseError if there is nothing to quantise.
    """
    keys, prefix = checkpoint_tensors.keys_of(path), model_view(model).prefix
    ranges = mapped_weights()
    inside = tuple(f"{name}." for name in whole)
    sites = [s for s in _quantisable_layers(model) if not f"{s.name}.".startswith(inside)]
    size = sum(site.weight.nbytes for site in sites if site.weight is not None)
    with Progress(f"packing {path} as {kind}", size, "B") as progress:
        for site in sites:
            weight = site.module._parameters["weight"]
            assert weight is not None
            layer = _packed(site, weight, path, kind, double=double_quantisation)
            key = checkpoint_tensors.key_of(site.name, keys, prefix)
            # A loader may transpose a tensor of the file. Then they are not the same weight.
            if key and checkpoint_tensors.sample(keys[key], key) == layer.original_sample:
                read = partial(checkpoint_tensors.read, keys[key], key, site.transposed)
                layer.original_weight = read
            model.set_submodule(site.name, layer)
            release_pages(weight, ranges)
            progress.advance(weight.nbytes)
    if not quantised_layers(model):
        raise BaseError(
            f"{path} has no linear layer that can be quantised.",
            fix="load it without quantisation",
        )
    _convert_remaining(model, dtype)


def _packed(site: Site, weight: Tensor, path: str, kind: str, *, double: bool) -> QuantisedLinear:
    """The quantised layer of a site, with a sample and a digest of its float `weight`."""
    try:
        layer = quantise(site.module, kind, double=double)
    except BaseError as error:
        raise BaseError(f"{site.name} of {path}: {error.what}", fix=error.fix) from None
    layer.original_sample = sampled(weight)
    layer.original_digest = digest(weight, rounded=True)
    return layer


def convert_prequantised(model: nn.Module, dtype: torch.dtype, skeleton: nn.Module) -> None:
    """Convert the layers of a checkpoint that bitsandbytes quantised. In place.

    skeleton: the float model, on the meta device.
    """
    foreign: Any = model
    for attribute in QUANTISATION_ATTRIBUTES:
        foreign.__dict__.pop(attribute, None)
    del foreign.config.quantization_config
    transposed = {site.name for site in sites_of(skeleton) if site.transposed}
    for name, module in list(model.named_modules()):
        if (layer := from_bitsandbytes(module)) is not None:
            layer.transposed = name in transposed
            model.set_submodule(name, layer)
    _convert_remaining(model, dtype)


def _quantisable_layers(model: nn.Module) -> list[Site]:
    """Linear layers and Conv1D of the decoder, except those with tied weights."""
    shared = {name for group in tied(model) for name, _ in group}
    excluded = {*layers_outside_decoder(model), *shared}
    keep = model_view(model).float32_modules
    return [
        site
        for site in sites_of(model)
        if site.is_dense
        and (type(site.module) is nn.Linear or site.transposed)
        and site.name not in excluded
        and not keep & set(site.name.split("."))
    ]


def _convert_remaining(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the other tensors to `dtype`, except modules that need float32. In place."""
    keep = model_view(model).strict_float32_modules
    for name, parameter in model.named_parameters():
        exact = keep & set(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if exact else dtype)
    packed = quantised_layers(model)
    table = next((layer.table for layer in packed.values() if layer.table is not None), None)
    for layer in packed.values():
        layer.like = layer.like.to(dtype)
        if layer.table is not None and table is not None and torch.equal(layer.table, table):
            layer.table = table  # one tensor, shared by all layers
    foreign: Any = model
    foreign.config.dtype = dtype
    # Every process reads the same files, so DDP need not broadcast the codes.
    parts = [f"{name}.{part}" for name in packed for part in (*PARTS, "like", "dequantised")]
    foreign._ddp_params_and_buffers_to_ignore = parts


@torch.no_grad()
def store_dequantised_layers(model: nn.Module, memory: int) -> str:
    """Store the first layers dequantised too, as many as fit in `memory` bytes. In place.

    Forward passes give the same values, without dequantising these layers again.

    Returns: a notice. Raises: ConfigError if nothing is quantised.
    """
    packed = list(quantised_layers(model).values())
    if not packed:
        raise ConfigError(
            "unpacked_gib is set, but the base is not quantised.",
            fix="leave it out, or add quantisation: nf4",
        )
    free, count = memory, 0
    for layer in packed:
        size = layer.in_features * layer.out_features * layer.like.element_size()
        if size <= free:
            layer.store_dequantised()
            free, count = free - size, count + 1
    return (
        f"the weights of {count} of {len(packed)} quantised layers are also stored dequantised, "
        f"in {memory - free:,} bytes"
    )


def quantisation_notices(model: nn.Module) -> list[str]:
    """Notices on which layers are quantised, and on the memory of the weights."""
    size = footprint(model)
    if size.bits_per_parameter is None:
        return []
    others = [s.name for s in sites_of(model) if not isinstance(s.module, QuantisedLinear)]
    unknown = sum(layer.original_weight is None for layer in quantised_layers(model).values())
    double = " with double quantisation" if size.double_quantisation else ""
    quantised = (
        f"{size.quantisation}{double}: {size.packed} linear layers are quantised, at "
        f"{size.bits_per_parameter:.3f} bits per parameter; not quantised: {listed(others)}"
    )
    memory = (
        f"the weights take {size.bytes:,} bytes in memory; in bfloat16 they would take "
        f"{size.bytes_in_bfloat16:,}"
    )
    notices = [quantised, memory]
    if stacks := [name for name, _ in fused_weights(model)]:
        notices.append(
            f"{len(stacks)} fused weights of experts stay in floats, since bitsandbytes packs no "
            f"weights of several experts: {listed(stacks, 2)}"
        )
    if unknown:
        notices.append(f"the original weights of {unknown} quantised layers are not known")
    return notices + faulty_kernel_notices(model)


def faulty_kernel_notices(model: nn.Module) -> list[str]:
    """Compare the kernels of bitsandbytes with the codebook on each layer; notices on faults."""
    packed = quantised_layers(model)
    faulty = [
        name
        for name, layer in packed.items()
        if layer.kind != "int8"
        and not (layer.in_features * layer.out_features) % BLOCK
        and not layer.unpacks_by_kernel(layer.like.dtype)
    ]
    if not faulty:
        return []
    notice = (
        f"bitsandbytes dequantises {len(faulty)} of {len(packed)} layers incorrectly on this "
        f"processor, so lorica dequantises them itself, more slowly: {listed(faulty)}"
    )
    return [notice]


def checkpoint_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state, quantization_config) of a model as bitsandbytes and transformers save it."""
    state, packed = dict(model.state_dict()), quantised_layers(model)
    for name, layer in packed.items():
        for part in PARTS:
            state.pop(f"{name}.{part}", None)
        if layer.kind == "int8":
            state[f"{name}.weight"] = layer.codes
            state[f"{name}.SCB"] = layer.scales.view(torch.float32)
            state[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)  # row by row
            continue
        state[f"{name}.weight"] = layer.codes.unsqueeze(1)
        quant_state = layer.state(torch.float32)
        quant_state.shape = torch.Size((layer.out_features, layer.in_features))
        for key, tensor in quant_state.as_dict(packed=True).items():
            state[f"{name}.weight.{key}"] = tensor.clone()
    return state, _config_of(model)


def _config_of(model: nn.Module) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    packed = quantised_layers(model)
    first = next(iter(packed.values()))
    floats = [site.name for site in sites_of(model) if site.name not in packed]
    settings: dict[str, Any] = (
        {"load_in_8bit": True}
        if first.kind == "int8"
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": first.kind,
            "bnb_4bit_use_double_quant": first.double_quantisation,
        }
    )
    return BitsAndBytesConfig(**settings, llm_int8_skip_modules=floats).to_dict()
