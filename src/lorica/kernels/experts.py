"""The forward pass of fused experts with a low-rank update, which is never added to the weights.

    y_e = size_e (W_e x + s B_e A_e x)      for the tokens x of each expert e

Each token is repeated for its K experts, the repetitions are sorted by expert, and every product is
one grouped product. An adapted stack (E, O, I) is never built: the update costs R (I + O) products
a token, and no bits of W are rounded away beside it. What the module computes between its two
products (gate, biases, a norm) is its own, as transformers declares it for its implementations
`grouped_mm` and `batched_mm`.

    N tokens   K experts of a token   S = N K   E experts   I, O features   R rank
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DECLARED = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed")
"""What transformers declares of a module of experts."""
MIN_CAPABILITY = (8, 0)
"""Of CUDA devices that torch has grouped products for."""
ALIGNMENT = 16
"""Bytes that the rows of a grouped product's factors are a multiple of."""


@dataclass(frozen=True)
class ExpertUpdate:
    """a: (E, R, I), b: (E, O, R), in any float dtype. size: (E, O), of DoRA; None: 1."""

    a: Tensor
    b: Tensor
    scale: float
    size: Tensor | None = None


@dataclass(frozen=True)
class _Groups:
    """Tokens in the order of their experts. experts: (S,), sorted. ends: (E,) int32, where the
    tokens of each expert end."""

    experts: Tensor
    ends: Tensor


def is_supported(module: Any, hidden: Tensor) -> bool:
    """Whether `experts_forward` knows what the module computes, and torch its products."""
    declared = all(isinstance(getattr(module, flag, None), bool) for flag in DECLARED)
    if torch.compiler.is_compiling() and hidden.dtype != torch.bfloat16:
        return False  # the compiler knows grouped products of bfloat16 alone
    return declared and not getattr(module, "_is_expert_parallel", False)


def experts_forward(
    module: Any, hidden: Tensor, index: Tensor, weights: Tensor, updates: Mapping[str, ExpertUpdate]
) -> Tensor:
    """What `module` computes with `updates` of its stacks, by the names of its parameters.

    hidden: (N, I). index: (N, K), the experts of each token. weights: (N, K), their weights.
    Returns: (N, O), in the dtype of `hidden`.
    """
    k, count = index.shape[-1], int(module.num_experts)
    experts, order = index.flatten().sort(stable=True)
    sizes = torch.zeros(count, dtype=torch.int32, device=index.device)
    sizes = sizes.index_add(0, experts, torch.ones_like(experts, dtype=torch.int32))
    groups = _Groups(experts, sizes.cumsum(0, dtype=torch.int32))
    first = "gate_up_proj" if module.has_gate else "up_proj"
    h = _projected(module, first, hidden[order // k], groups, updates)
    h = module._apply_gate(h) if module.has_gate else module.act_fn(h)
    y = _projected(module, "down_proj", h, groups, updates)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    y = y * weights.flatten()[order].unsqueeze(-1)
    return y[order.argsort()].unflatten(0, (-1, k)).sum(1).to(hidden.dtype)


def _projected(
    module: Any, key: str, x: Tensor, groups: _Groups, updates: Mapping[str, ExpertUpdate]
) -> Tensor:
    """The product of x (S, I) with the stack `key` and its update, (S, O)."""
    stack = getattr(module, key)
    stack = stack.mT if module.is_transposed else stack
    x = x.to(stack.dtype)
    y = grouped(x, stack, groups.ends)
    if (update := updates.get(key)) is not None:
        h = grouped(x, _aligned(update.a.to(x.dtype), 1), groups.ends)
        added = grouped(h, _aligned(update.b.to(x.dtype), 2), groups.ends)
        y = torch.add(y, added, alpha=update.scale)
        if update.size is not None:
            y = y * update.size.to(y.dtype)[groups.experts]
    if module.has_bias:
        y = y + getattr(module, f"{key}_bias")[groups.experts]
    return y


def grouped(x: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    """The product of x (S, I), in the order of the experts, with each one's own matrix (O, I).

    stack: (E, O, I). ends: (E,). Returns: (S, O).
    """
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < MIN_CAPABILITY:
        return grouped_reference(x, stack, ends)
    return F.grouped_mm(x, stack.mT, offs=ends)


def grouped_reference(x: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    """`grouped`, one expert after another."""
    stops = ends.tolist()
    parts = zip([0, *stops], stops, stack, strict=False)
    return torch.cat([F.linear(x[start:stop], own) for start, stop, own in parts])


def _aligned(factor: Tensor, dim: int) -> Tensor:
    """`factor` with zeros behind its rank, at `dim`, where the rows of a product need them."""
    step = ALIGNMENT // factor.element_size()
    rest = -factor.shape[dim] % step
    return F.pad(factor, (0, 0, 0, rest) if dim == 1 else (0, rest)) if rest else factor
