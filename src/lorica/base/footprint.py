"""The quantised layers of a base, and the memory of its weights."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from lorica.base.quantise import QuantisedLinear
from lorica.core.site import ADAPTERS


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The quantised layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantisedLinear)}


@dataclass(frozen=True)
class Footprint:
    """The memory of the weights of a base.

    parameters: all of them, tied tensors once. bytes: measured. bytes_in_bfloat16: if it were not
    quantised. quantisation: the kind of its quantised layers; packed: their number;
    bits_per_parameter: in these layers.
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
    """The footprint of the base under any adapters."""
    held: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        own = [p for p in module._parameters.values() if p is not None]
        if isinstance(module, QuantisedLinear):
            own += [b for b in module._buffers.values() if b is not None]
        held |= {_address(tensor): tensor for tensor in own if tensor.numel()}
    packed = list(quantised_layers(model).values())
    weights = [layer.in_features * layer.out_features for layer in packed]
    codes = {_address(part) for layer in packed for part in _parts_of(layer)}
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


def _address(tensor: Tensor) -> int:
    """Where a tensor is in memory; of a sharded one, the part of this process."""
    return getattr(tensor, "_local_tensor", tensor).data_ptr()


def _parts_of(layer: QuantisedLinear) -> list[Tensor]:
    """Every tensor of a quantised layer but its bias; some are parameters where it is sharded."""
    own = {**layer._buffers, **layer._parameters}
    return [tensor for key, tensor in own.items() if key != "bias" and tensor is not None]
