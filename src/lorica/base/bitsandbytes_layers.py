"""Layers that bitsandbytes has packed, as layers of ours with the same bits."""

from typing import Any

import torch
from torch import Tensor

from lorica.base import codebook
from lorica.base.bitsandbytes_kernels import require
from lorica.base.codebook import BLOCK, SECOND_BLOCK
from lorica.base.quantise import QuantisedLinear
from lorica.errors import ConfigError


def taken_over(layer: Any) -> QuantisedLinear | None:
    """A quantised layer of bitsandbytes as one of ours, with its bits; None: it is none."""
    nn_ = require().nn
    if not isinstance(layer, nn_.Linear4bit | nn_.Linear8bitLt):
        return None
    shape, bias = (layer.in_features, layer.out_features), layer.bias
    dtype = torch.float32 if bias is None else bias.dtype
    if isinstance(layer, nn_.Linear8bitLt):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        codes = layer.weight.data
        return QuantisedLinear("int8", *shape, bias, dtype, codes=codes, scales=scales)
    state = layer.weight.quant_state
    reason = None
    if state.blocksize != BLOCK or (state.nested and state.state2.blocksize != SECOND_BLOCK):
        reason = f"blocks of {state.blocksize}; blocks of {BLOCK} are read"
    elif not torch.equal(state.code, codebook.values(state.quant_type, state.code.device)):
        reason = f"its own table of {state.quant_type} values"
    if reason is not None:
        raise ConfigError(
            f"a quantised layer has {reason}.",
            fix="load the base that it was made from, and quantise that",
        )
    parts = _parts(layer.weight.data, state)
    return QuantisedLinear(state.quant_type, *shape, bias, dtype, **parts)


def _parts(codes: Tensor, state: Any) -> dict[str, Tensor | None]:
    """What bitsandbytes gives for 4-bit codes, under our names."""
    second = state.state2 if state.nested else None
    return {
        "codes": codes.detach().contiguous().view(torch.uint8).reshape(-1),
        "scales": state.absmax,
        "second": second and second.absmax,
        "offset": state.offset if second else None,
        "table": second and second.code,
    }


def quantisation_of(settings: Any) -> tuple[str | None, bool]:
    """(quantisation, double quantisation) that a transformers quantization_config says."""
    if settings is None:
        return None, False
    said = settings if isinstance(settings, dict) else settings.to_dict()
    if said.get("load_in_8bit"):
        return "int8", False
    if said.get("load_in_4bit"):
        double = bool(said.get("bnb_4bit_use_double_quant"))
        return str(said.get("bnb_4bit_quant_type", "fp4")), double
    method = said.get("quant_method") or "unknown"
    return str(getattr(method, "value", method)), False
