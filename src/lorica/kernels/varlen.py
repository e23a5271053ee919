"""Attention over a packed batch in one kernel: torch.nn.attention.varlen, where the device has it.

It needs a GPU with flash attention, and float16 or bfloat16. Whether it gives what a call per row
gives is not assumed but tried, once for each device, dtype and shape of the heads; elsewhere
kernels.attention makes a call per row.
"""

from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 2e-2
"""Largest difference to a call per row, as a share of the largest value: of float16, bfloat16."""
TRIED = [5, 9, 1]  # tokens of the rows that are tried


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """Softmax attention inside each row; arguments as in `kernels.attention.attention_by_row`.

    Returns: (1, H, T, D).
    """
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)
    q, k, v = (t.squeeze(0).transpose(0, 1).contiguous() for t in (query, key, value))
    before = -1 if window is None else window - 1  # -1: all
    mixed: Any = varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        max(lengths),
        max(lengths),
        scale=scale,
        window_size=(before, 0 if causal else -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(0, 1).unsqueeze(0)


def has_varlen(query: Tensor, key: Tensor) -> bool:
    """Whether the kernel is right for tensors like these: query (1, H, T, D), key (1, K, T, D)."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return _agrees(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])


@lru_cache(maxsize=64)
def _agrees(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int
) -> bool:
    """Whether outputs and gradients are those of a call per row. size: of a head."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, n, sum(TRIED), size) for n in (heads, key_heads, key_heads)]
    tensors = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    try:
        with torch.enable_grad():
            results = [_with_gradients(way, tensors) for way in (varlen_attention, by_row)]
    except Exception:  # no such module or kernel, or one that refuses this shape
        return False
    pairs = list(zip(*results, strict=True))
    return all((a - b).abs().max() <= ROUNDING * b.abs().max() for a, b in pairs)


def _with_gradients(way: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, in float32."""
    inputs = [t.clone().requires_grad_() for t in tensors]
    output = way(*inputs, TRIED)
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    return [t.detach().float() for t in (output, *gradients)]


def by_row(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention with a call per row, written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    rows = zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in rows], dim=2
    )
