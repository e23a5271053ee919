"""The one call for all rows, with a stand-in for the kernel that only a GPU has.

The stand-in takes the kernel's documented arguments and is written out, so that what is tested is
what we hand to it: layout, starts of the rows, window, scale, and which outputs are ours.
"""

import inspect
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from lorica.kernels import attention, varlen
from lorica.kernels.attention import attention_by_row

LENGTHS = [5, 3, 4, 2]
SHARED = [[], [(0, 4)], [(0, 4), (5, 7)], []]


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """query (T, H, D), key, value (T, K, D): each row by itself, softmax written out."""
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert all(t.is_contiguous() for t in (query, key, value))
    starts = cu_seq_q.tolist()
    assert max_q == max_k == max(b - a for a, b in pairwise(starts))
    groups, rows = query.shape[1] // key.shape[1], []
    for a, b in pairwise(starts):
        q, k, v = (t[a:b].transpose(0, 1) for t in (query, key, value))
        k, v = (t.repeat_interleave(groups, 0) for t in (k, v))
        ahead = torch.arange(b - a).unsqueeze(0) - torch.arange(b - a).unsqueeze(1)
        left, right = (w if w >= 0 else b - a for w in window_size)
        scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
        scores = scores.masked_fill((ahead > right) | (-ahead > left), -torch.inf)
        rows.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


def test_the_stand_in_has_the_kernels_arguments():
    own = inspect.signature(kernel).parameters
    real = inspect.signature(torch_varlen.varlen_attn).parameters
    assert [p for p in real if p in own] == list(own)
    assert all(real[name].kind == own[name].kind for name in own)


@pytest.mark.parametrize("shared", [None, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"window": 2}, {"causal": False}], ids=str)
def test_one_call_is_a_call_per_row(monkeypatch, shared, key_heads, options):
    draw = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, 14, 6, generator=draw).double() for heads in (4, key_heads, key_heads)
    ]
    weights = torch.randn(1, 4, 14, 6, generator=draw).double()
    results, asked = [], []
    for has_kernel in (False, True):
        monkeypatch.setattr(attention, "has_varlen", lambda q, k, has=has_kernel: has)
        monkeypatch.setattr(
            torch_varlen, "varlen_attn", lambda *a, **k: asked.append(1) or kernel(*a, **k)
        )
        inputs = [t.clone().requires_grad_() for t in tensors]
        y = attention_by_row(*inputs, LENGTHS, shared=shared, **options)
        results.append([y, *torch.autograd.grad((y * weights).sum(), inputs)])
    assert len(asked) == 1
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


def test_what_the_kernel_does_not_do_is_a_call_per_row(monkeypatch):
    """Dropout, and keys that all rows see."""
    monkeypatch.setattr(attention, "has_varlen", lambda q, k: True)
    monkeypatch.setattr(torch_varlen, "varlen_attn", None)
    q, k, v = (torch.randn(1, 2, 14, 4) for _ in range(3))
    attention_by_row(q, k, v, LENGTHS, dropout=0.5)
    attention_by_row(q, k, v, LENGTHS, front=(torch.randn(2, 3, 4), torch.randn(2, 3, 4)))


def test_a_cpu_has_no_such_kernel():
    q = torch.randn(1, 2, 14, 4, dtype=torch.bfloat16)
    assert not varlen.has_varlen(q, q)


@pytest.mark.parametrize("fault", ["right", "refuses", "wrong", "wrong gradient"])
def test_the_kernel_is_tried_before_it_is_used(monkeypatch, fault):
    def tried(*args, **options):
        if fault == "refuses":
            raise RuntimeError("head size 6 is not supported")
        y = kernel(*args, **options)
        if fault == "wrong gradient":
            return y.detach() + 0 * args[0]
        return y * 1.1 if fault == "wrong" else y

    monkeypatch.setattr(torch_varlen, "varlen_attn", tried)
    varlen._agrees.cache_clear()
    try:
        agrees = varlen._agrees(torch.device("cpu"), torch.bfloat16, 4, 2, 8)
    finally:
        varlen._agrees.cache_clear()
    assert agrees == (fault == "right")
