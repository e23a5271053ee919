"""Try a base that has just been loaded, without holding its files in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base.mapped_memory import is_mapped, mapped_weights, release_pages
from lorica.base.offload import released_after_use

PIECE = 2**24
"""Bytes of a mapped weight that are in memory at a time."""


@contextmanager
def in_little_memory(model: nn.Module) -> Iterator[None]:
    """Inside the block, the mapped weights of one layer at a time are in memory.

    Large linear layers, such as the output head, are computed in pieces of their output. Their
    values may differ in the last bits.
    """
    ranges, before = mapped_weights(), {}

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        rows, outputs = max(PIECE // layer.weight[0].nbytes, 1), []
        for piece in layer.weight.split(rows):
            outputs.append(F.linear(x, piece))
            release_pages(piece, ranges)
        y = torch.cat(outputs, -1)
        return y if layer.bias is None else y + layer.bias

    for module in model.modules():
        if type(module) is not nn.Linear or not is_mapped(module.weight, ranges):
            continue
        if module.weight.nbytes > PIECE:
            before[module] = vars(module).get("forward")
            module.forward = MethodType(forward, module)
    try:
        with released_after_use(model):
            yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own
