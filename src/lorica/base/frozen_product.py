"""The backward pass of frozen linear layers in bfloat16 and float16, fast on every CPU.

On a CPU without instructions for the dtype, torch multiplies dY W with a plain loop: with AVX2 one
product takes 60 times as long as in float32. Here W is widened to float32 in pieces, and the result
is rounded once. The forward pass is torch's own. It is chosen by the CPU's instructions, not by a
measurement, so every run on a machine computes the same bits.

    y = x W^T + b    dX = dY W
"""

from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 1 << 22
"""Numbers of W that are widened at a time: 16 MiB in float32."""


def speed_up_backward(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply in float32 in their backward pass. In place.

    Only layers in a dtype that this CPU multiplies slowly are changed. Their class, their
    parameters and the values of the forward pass stay the same.
    """
    for module in model.modules():
        if type(module) is nn.Linear and is_slow(module.weight):
            # deepcopy binds a method anew to the copy of the layer; a closure would keep this one.
            module.forward = MethodType(_forward, module)


def keep_parameters(block: nn.Module) -> None:
    """Let the graph keep the parameters of linear layers, not views of their values. In place.

    A view would hold the copy of a weight on the accelerator until the backward pass.
    """
    for module in block.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_forward, module)


def is_slow(like: Tensor) -> bool:
    """Whether this CPU has no instructions for the products of tensors such as `like`."""
    return like.device.type == "cpu" and like.dtype in _slow_dtypes()


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """dX (..., I) from `grad` (..., O) and the weight (O, I), in the dtype of `grad`."""
    if not is_slow(grad):
        return grad @ weight
    wide = grad.reshape(-1, grad.shape[-1]).float()
    total = wide.new_zeros(len(wide), weight.shape[1])
    rows = max(PIECE // weight.shape[1], 1)
    for part, piece in zip(wide.split(rows, 1), weight.split(rows), strict=True):
        total.addmm_(part, piece.float())
    return total.to(grad.dtype).view(*grad.shape[:-1], weight.shape[1])


@cache
def _slow_dtypes() -> frozenset[torch.dtype]:
    checks = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    known = {dtype: getattr(torch.ops.mkldnn, name, None) for dtype, name in checks.items()}
    return frozenset(dtype for dtype, check in known.items() if check is not None and not check())


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not (torch.is_grad_enabled() and x.requires_grad):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """The weight is kept beside the graph, so that activation checkpointing does not count it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return input_gradient(grad, ctx.weight.detach()), None, None
