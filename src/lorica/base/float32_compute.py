"""Compute a model in float32 without holding it in float32: one layer's weights at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def computed_in_float32(model: nn.Module) -> Iterator[None]:
    """Give every layer float32 copies of its parameters while its forward pass runs.

    Embeddings then give float32 activations, and the layers after them compute in float32. A linear
    layer, whose output is never part of its weights, leaves its copy to the next one as large:
    clearing new memory takes longer than the copy.
    """
    held: dict[nn.Parameter, Tensor] = {}
    buffers: dict[tuple[int, torch.device], Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dtype in (torch.bfloat16, torch.float16):
                held[parameter] = parameter.data
                size = parameter.numel(), parameter.device
                if isinstance(module, nn.Linear) and (wide := buffers.pop(size, None)) is not None:
                    parameter.data = wide.view(parameter.shape).copy_(parameter.data)
                else:
                    parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module._parameters.values():
            if parameter is not None and parameter in held:
                if isinstance(module, nn.Linear):
                    buffers[parameter.numel(), parameter.device] = parameter.data.view(-1)
                parameter.data = held.pop(parameter)

    handles = []
    for module in model.modules():
        if any(p is not None for p in module._parameters.values()):
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
