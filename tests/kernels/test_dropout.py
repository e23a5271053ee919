"""What is dropped: how often, that neighbours know nothing of each other, and where."""

import pytest
import torch
from torch import Tensor

from lorica.kernels import dropout as kernel
from lorica.kernels.dropout import drop_, dropout, dropped

CPU = torch.device("cpu")


def mask_of(shape: torch.Size, p: float) -> Tensor:
    """1 where a number is dropped."""
    return 1 - drop_(torch.ones(shape, dtype=torch.float64), dropped(shape, p, CPU))


@pytest.mark.parametrize("p", [1e-3, 0.05, 0.5, 0.9])
def test_each_number_is_dropped_with_the_probability_that_was_asked_for(p):
    torch.manual_seed(0)
    n = 400_000
    shape = torch.Size([100, n // 100])
    mask = mask_of(shape, p).view(-1)
    sigma = (p * (1 - p) / n) ** 0.5
    assert abs(mask.mean() - p) < 5 * sigma
    for lag in (1, 2, 7):  # neighbours know nothing of each other
        both = (mask[lag:] * mask[:-lag]).mean()
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) * 3 / n) ** 0.5
    for part in mask.split(n // 4):
        assert abs(part.mean() - p) < 10 * sigma
    torch.manual_seed(0)
    assert torch.equal(mask_of(shape, p).view(-1), mask)


def test_the_default_dtype_does_not_change_what_is_dropped():
    torch.manual_seed(0)
    want = dropped(torch.Size([20_000]), 0.05, CPU)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = dropped(torch.Size([20_000]), 0.05, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (1, 3)], ids=str)
def test_small_shapes_are_dropped_too(shape):
    torch.manual_seed(0)
    masks = [mask_of(torch.Size(shape), 0.5) for _ in range(20)]
    assert masks[0].shape == shape
    assert masks[0].numel() == 0 or {0.0, 1.0} <= set(torch.stack(masks).flatten().tolist())


def test_more_is_drawn_when_the_gaps_were_short(monkeypatch):
    torch.manual_seed(0)
    rand, calls = torch.rand, []

    def short(n: int, dtype: torch.dtype) -> Tensor:
        calls.append(n)
        # Gaps of 1 at first: they reach nowhere.
        return rand(n, dtype=dtype) if len(calls) > 1 else torch.zeros(n)

    monkeypatch.setattr(kernel.torch, "rand", short)
    mask = mask_of(torch.Size([2_000]), 0.05)
    assert mask[: calls[0]].all()
    assert 0 < mask[calls[0] :].mean() < 0.1 and mask[-500:].any()


def test_places_are_no_view_of_what_was_drawn_beyond_them():
    places = dropped(torch.Size([1000]), 0.05, CPU)
    assert places.untyped_storage().nbytes() == 4 * len(places)


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "turned"])
def test_what_is_left_is_scaled_and_the_gradient_is_dropped_alike(turned):
    x = torch.rand(40, 50, dtype=torch.float64) + 1
    x = (x.T if turned else x).requires_grad_()
    y = dropout(x, 0.2)
    assert 0.1 < (y == 0).double().mean() < 0.3
    torch.testing.assert_close(y, torch.where(y == 0, 0, x / (1 - 0.2)))
    (y * 3).sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 3 / (1 - 0.2)).to(x.dtype))


def test_nothing_is_dropped_in_evaluation_or_at_zero():
    x = torch.randn(4, 5)
    assert torch.equal(dropout(x, 0.9, training=False), x)
    assert torch.equal(dropout(x, 0.0), x)
