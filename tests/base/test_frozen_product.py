"""The backward pass of frozen layers in a narrow dtype: torch's gradients, up to one rounding."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lorica.base import frozen_product
from lorica.base.frozen_product import input_gradient, speed_up_backward

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """As on a CPU without instructions for these dtypes."""
    monkeypatch.setattr(frozen_product, "_slow_dtypes", partial(frozenset, DTYPES))
    monkeypatch.setattr(frozen_product, "PIECE", 5 * 24)  # several pieces, the last one smaller


def layer(dtype: torch.dtype, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 37, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 3, 24)])
def test_values_are_those_of_torch_and_gradients_are_rounded_once(dtype, bias, shape):
    plain = layer(dtype, bias=bias)
    ours = copy.deepcopy(plain)
    speed_up_backward(ours)
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    y = ours(x)
    assert torch.equal(y, plain(x))
    grad = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, grad)
    wanted = grad.double() @ plain.weight.double()
    assert gradient.dtype == dtype
    assert gradient.shape == x.shape
    torch.testing.assert_close(gradient.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_a_copy_of_a_layer_has_its_own_weight():
    ours = layer(torch.bfloat16)
    speed_up_backward(ours)
    other = copy.deepcopy(ours)
    other.weight.data.zero_()
    x = torch.ones(1, 24, dtype=torch.bfloat16).requires_grad_()
    (gradient,) = torch.autograd.grad(other(x).sum(), x)
    assert not gradient.any()
    assert torch.equal(other(x)[0], other.bias)


def test_a_trained_weight_has_its_gradient():
    ours = layer(torch.bfloat16).requires_grad_()
    speed_up_backward(ours)
    ours(torch.ones(2, 24, dtype=torch.bfloat16)).sum().backward()
    assert ours.weight.grad is not None
    assert ours.bias.grad is not None


def test_a_dtype_with_instructions_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(frozen_product, "_slow_dtypes", frozenset)
    ours = layer(torch.bfloat16)
    speed_up_backward(ours)
    assert "forward" not in ours.__dict__
    grad = torch.randn(3, 37, dtype=torch.bfloat16)
    assert torch.equal(input_gradient(grad, ours.weight), grad @ ours.weight)
