"""Convert quantised layers of bitsandbytes to QuantisedLinear, with the same bits."""

from typing import Any

import torch
from torch import Tensor

from lorica.base import codebook
from lorica.base.bitsandbytes_kernels import require
from lorica.base.codebook import BLOCK, SECOND_BLOCK
from lorica.base.quantise import QuantisedLinear
from lorica.errors import ConfigError


def from_bitsandbytes(layer: Any) -> QuantisedLinear | None:
    """A quantised layer of bitsandbytes as a QuantisedLinear; None: it is another layer.

    Raises: ConfigError for blocks or values that QuantisedLinear does not have.
    """
    bnb = require().nn
    match layer:
        case bnb.Linear8bitLt():
            scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
            return _quantised(layer, "int8", codes=layer.weight.data, scales=scales)
        case bnb.Linear4bit():
            return _from_4bit(layer)
    return None


def _from_4bit(layer: Any) -> QuantisedLinear:
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
    return _quantised(layer, state.quant_type, **_parts(layer.weight.data, state))


def _quantised(layer: Any, kind: str, **parts: Any) -> QuantisedLinear:
    dtype = torch.float32 if layer.bias is None else layer.bias.dtype
    return QuantisedLinear(kind, layer.in_features, layer.out_features, layer.bias, dtype, **parts)


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
