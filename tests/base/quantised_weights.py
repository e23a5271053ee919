"""Quantised layers of random weights, and their stored codes and constants."""

import pytest
import torch
from torch import Tensor, nn

from lorica.base.quantise import KINDS, QuantisedLinear
from tests.base import nf4

SHAPES = [(64, 64), (48, 20), (130, 3), (7, 5), (1, 1), (64, 129)]  # (I, O): short last blocks too
each_kind = pytest.mark.parametrize("kind", KINDS)
four_bits = pytest.mark.parametrize("kind", ["nf4", "fp4"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")


def gaussian(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def linear(i: int, o: int, bias: bool = False, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(i, o, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(gaussian(i * o, seed).view(o, i))
        if bias:
            layer.bias.copy_(gaussian(o, seed + 1))
    return layer


def linear_with_weight(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def codes_of(layer: QuantisedLinear) -> Tensor:
    return nf4.unpacked(layer.codes, layer.in_features * layer.out_features)


def as_float32(stored: Tensor | None) -> Tensor:
    """Constants of a layer, which it stores as bytes."""
    assert stored is not None
    return stored.view(torch.float32)
