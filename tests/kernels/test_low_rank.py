"""The one-pass update against its definition: values, gradients, dropout, what is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorica
from lorica.kernels import low_rank as kernel
from lorica.kernels.low_rank import (
    low_rank,
    low_rank_rows,
    low_rank_segments,
    reference,
    rows_reference,
)

SPANS = [(0, 3, 2), (3, 4, 0), (4, 9, 1), (9, 14, 2)]
SHAPES = [(14, 12), (2, 7, 12), (1, 14, 12)]
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def drawn(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outcome(act: Callable[..., Tensor], x: Tensor, w: Tensor, bias: Tensor | None, a, b) -> list:
    """Output and gradients of a layer with an update."""
    x, a, b = (t.clone().requires_grad_() for t in (x, a, b))
    y = act(x, F.linear(x, w, bias), a, b)
    (y.float() * drawn(*y.shape, seed=8)).sum().backward()
    return [y.detach(), x.grad, a.grad, b.grad]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_definition(shape, bias, dtype):
    x, w = drawn(*shape, dtype=dtype), drawn(20, 12, seed=1, dtype=dtype)
    shift = drawn(20, seed=2, dtype=dtype) if bias else None
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = drawn(4, 12, seed=3, dtype=kept), drawn(20, 4, seed=4, dtype=kept)
    got, want = (
        outcome(lambda x, y, a, b, f=f: f(x, y, a, b, 1.7), x, w, shift, a, b)
        for f in (low_rank, reference)
    )
    assert [t.dtype for t in got] == [dtype, dtype, kept, kept]
    for value, expected in zip(got, want, strict=True):
        close = EXACT[dtype] * expected.abs().max().item()
        torch.testing.assert_close(value, expected, atol=close, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_with_factors_of_their_own(shape, dtype):
    x, w = drawn(*shape, dtype=dtype), drawn(20, 12, seed=1, dtype=dtype)
    a, b = drawn(4, 2, 12, seed=3, dtype=dtype), drawn(4, 20, 2, seed=4, dtype=dtype)
    got, want = (
        outcome(lambda x, y, a, b, f=f: f(x, y, a, b, SPANS, 1.7), x, w, None, a, b)
        for f in (low_rank_rows, rows_reference)
    )
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, atol=EXACT[dtype] * 10, rtol=0)
    assert not got[2][3].any() and not got[3][3].any(), "the pair that no row has"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_parts_with_ranks_and_scales_of_their_own(dtype):
    x, w = drawn(1, 14, 12, dtype=dtype), drawn(20, 12, seed=1, dtype=dtype)
    a, b = drawn(6, 12, seed=3, dtype=dtype), drawn(20, 6, seed=4, dtype=dtype)
    ranks, scales, sizes = [1, 3, 2], [1.7, 0.5, 2.0], [4, 9, 1]

    def parts(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor, float]]:
        return list(zip(a.split(ranks), b.split(ranks, 1), scales, strict=True))

    def apart(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        each = zip(x.split(sizes, 1), y.split(sizes, 1), parts(a, b), strict=True)
        return torch.cat([reference(x, y, *part) for x, y, part in each], 1)

    joined = lambda x, y, a, b: low_rank_segments(x, y, parts(a, b), sizes)  # noqa: E731
    got, want = (outcome(act, x, w, None, a, b) for act in (joined, apart))
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, atol=EXACT[dtype] * 10, rtol=0)


def test_what_is_not_a_rows_own_does_not_reach_it():
    x, y = drawn(14, 12), drawn(14, 20, seed=5)
    a, b = drawn(3, 2, 12, seed=3), drawn(3, 20, 2, seed=4)
    wild = torch.cat([a[:2], torch.full_like(a[2:], torch.inf)])
    got, want = (low_rank_rows(x, y.clone(), factors, b, SPANS) for factors in (wild, a))
    assert torch.equal(got[3:9], want[3:9])
    assert not got[9:].isfinite().all()


@pytest.mark.parametrize("form", ["places", "mask"])
@pytest.mark.parametrize("rows", [False, True])
def test_dropout_is_that_of_what_was_drawn(rows, form, monkeypatch):
    x, w = drawn(2, 7, 12), drawn(20, 12, seed=1)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(9)) < 0.3
    places = mask.view(-1).nonzero().view(-1)
    gone = places if form == "places" else mask
    monkeypatch.setattr(kernel, "dropped", lambda shape, p, device: gone)
    shape = (3,) if rows else ()
    a, b = drawn(*shape, 4, 12, seed=3), drawn(*shape, 20, 4, seed=4)
    spans = [SPANS] if rows else []
    function, other = (low_rank_rows, rows_reference) if rows else (low_rank, reference)
    got = outcome(lambda x, y, a, b: function(x, y, a, b, *spans, 1.7, 0.3), x, w, None, a, b)
    masked = lambda x, y, a, b: other(x.masked_fill(mask, 0) / 0.7, y, a, b, *spans, 1.7)  # noqa: E731
    for left, right in zip(got, outcome(masked, x, w, None, a, b), strict=True):
        torch.testing.assert_close(left, right, atol=1e-10, rtol=0)


def test_what_the_layer_gave_is_overwritten_only_where_nobody_else_sees_it():
    x, a, b = drawn(6, 12), drawn(4, 12, seed=3), drawn(12, 4, seed=4)
    y = drawn(6, 12, seed=5)
    assert low_rank(x, y, a, b) is y
    passed_on = x.clone()
    assert low_rank(passed_on, passed_on, a, b) is not passed_on
    assert torch.equal(passed_on, x)
    whole = drawn(6, 24, seed=6)
    before = whole.clone()
    low_rank(x, whole.split(12, 1)[0], a, b)
    assert torch.equal(whole, before)


def kept(a_learns: bool, dropout: float) -> int:
    """Bytes kept for the backward pass, apart from what the factors are."""
    sizes: list[int] = []

    def note(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    x = drawn(50, 64, dtype=torch.float32).requires_grad_()
    y = F.linear(x, torch.zeros(32, 64))
    a = drawn(4, 64, dtype=torch.float32).requires_grad_(a_learns)
    b = drawn(32, 4, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        low_rank(x, y, a, b, dropout=dropout)
    return sum(sizes) - 4 * (a.numel() + b.numel())


def test_only_what_the_backward_pass_needs_is_kept():
    products, inputs = 4 * 4 * 50, 4 * 64 * 50
    assert kept(a_learns=False, dropout=0) == products
    assert kept(a_learns=True, dropout=0) == products + inputs
    torch.manual_seed(0)
    places = kept(a_learns=True, dropout=0.1) - products - inputs
    assert abs(places - 0.1 * inputs) < 0.03 * inputs, "4 bytes for a number that is dropped"


def test_an_input_without_gradient_gets_none():
    x, w = drawn(6, 12), drawn(20, 12, seed=1)
    a, b = drawn(4, 12, seed=3).requires_grad_(), drawn(20, 4, seed=4).requires_grad_()
    low_rank(x, F.linear(x, w), a, b).sum().backward()
    assert x.grad is None and a.grad is not None and b.grad is not None


def test_under_autocast_it_is_its_definition():
    layer, x = nn.Linear(12, 20), drawn(6, 12, dtype=torch.float32)
    a, b = drawn(4, 12, seed=3, dtype=torch.float32), drawn(20, 4, seed=4, dtype=torch.float32)
    results = []
    for f in (low_rank, reference):
        wide, low, high = (t.clone().requires_grad_() for t in (x, a, b))
        with torch.autocast("cpu", torch.bfloat16):
            y = f(wide, layer(wide), low, high)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        results.append([y.detach().float(), wide.grad, low.grad, high.grad])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, atol=0.05 * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    "name", ["lora", "lora_fa", "dora", "adalora", "alora", "aflora", "dora_dynamic", "double_lora"]
)
def test_dropout_is_off_outside_of_training(name):
    from tests.laws.bases import CASES, trained

    model = trained(name, CASES[0], dropout=0.5).eval()
    assert torch.equal(CASES[0].run(model), CASES[0].run(model))
    model.train()
    assert not torch.equal(CASES[0].run(model), CASES[0].run(model))


def test_two_adapters_at_once_train():
    """The second meets what the first has overwritten."""
    for names in (("lora", "dora"), ("dora", "lora"), ("ia3", "lora"), ("lora", "lora")):
        model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12))
        for i, name in enumerate(names):
            settings = {"target_modules": ["0", "2"]}
            lorica.adapt(model, lorica.method(name), name=f"n{i}", seed=i, **settings)
        lorica.activate(model, "n0", "n1")
        model(drawn(5, 12, dtype=torch.float32)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
