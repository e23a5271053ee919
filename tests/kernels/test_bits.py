"""Bayesian Bits: steps, levels and errors of the grids; the gates' numbers; what passes back."""

import math

import pytest
import torch

from lorica.kernels import bits

WIDTHS = (2, 4, 8, 16, 32)
ON = torch.ones


def spread(n: int = 4001, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Numbers from -1 to 1, on no grid."""
    return torch.linspace(-1, 1, n, dtype=dtype)


def step_for(x: torch.Tensor) -> torch.Tensor:
    """s2, when the range ends at the largest number."""
    return x.abs().max() / bits.EDGE


def test_steps_divide_the_range():
    s = 2 / 3
    levels = []
    for finer in (1, *bits.FINER):
        s /= finer
        levels.append(2 / s)
    assert levels == pytest.approx([3, 15, 255, 65535, 2**32 - 1])


@pytest.mark.parametrize("width", WIDTHS[:3])
def test_b_bits_have_2_to_the_b_less_one_levels(width):
    x = spread(100_001)
    levels = bits.quantise(x, step_for(x), ON(WIDTHS.index(width))).round(decimals=9).unique()
    assert len(levels) == 2**width - 1
    torch.testing.assert_close(levels, -levels.flip(0))
    assert (levels.abs() < 1e-12).any(), "zero is one of them"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_error_is_half_a_step(width, dtype):
    x = spread(dtype=dtype)
    step = step_for(x)
    got = bits.quantise(x, step, ON(WIDTHS.index(width), dtype=dtype))
    s = float(step) / math.prod(bits.FINER[: WIDTHS.index(width)])
    rounding = 4 * torch.finfo(dtype).eps
    assert ((got - x).abs() <= s / 2 + rounding).all()
    assert width > 16 or (got - x).abs().max() > s / 4, "and no less: it is on the grid"


def test_by_hand():
    """s2 = 1: 1.3 is 1, then 1 + 0.2 (2 rounds of 0.3 / 0.2 go to the even 2: 0.4)."""
    x, s = torch.tensor([1.3, -0.7, 0.44, 2.0, -7.3]), torch.tensor(1.0)
    torch.testing.assert_close(bits.quantise(x, s, []), torch.tensor([1.0, -1, 0, 2, -7]))
    got = bits.quantise(x, s, ON(1))
    torch.testing.assert_close(got, torch.tensor([1.2, -0.6, 0.4, 2, -7.4]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", range(5))
def test_nothing_is_clipped(n):
    """Numbers far past the first range are rounded, not cut off, and keep their gradients."""
    x = torch.linspace(-40, 40, 801, dtype=torch.float64, requires_grad=True)
    y = bits.quantise(x, torch.tensor(1.0, dtype=torch.float64), ON(n, dtype=torch.float64))
    assert (y - x).abs().max() <= 0.5 / math.prod(bits.FINER[:n]) + 1e-9
    y.sum().backward()
    assert x.grad.tolist() == [1] * 801


@pytest.mark.parametrize("n", range(5))
def test_a_vector_on_its_own_range_keeps_all_its_gradients(n):
    u = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = bits.on_own_range(u, ON(n))
    levels = (got[0] / got[0].abs().max()).detach().double().round(decimals=5).unique()
    assert len(levels) <= 2 ** (2 ** (n + 1)) - 1
    got.sum().backward()
    assert u.grad.tolist() == torch.ones(5, 16).tolist()


def test_closed_gates_leave_the_coarser_grid():
    x, gates = spread(), ON(3, dtype=torch.float64)
    s = step_for(x)
    for open_ in range(3):
        closed = gates.clone()
        closed[open_] = 0  # the finer ones are open, and of no use
        assert torch.equal(bits.quantise(x, s, closed), bits.quantise(x, s, gates[:open_]))
    half = bits.quantise(x, s, torch.tensor([0.5], dtype=torch.float64))
    ends = bits.quantise(x, s, []), bits.quantise(x, s, gates[:1])
    torch.testing.assert_close(half, (ends[0] + ends[1]) / 2)


@pytest.mark.parametrize("n", range(5))
def test_what_passes_back(n):
    """To x as if nothing were rounded, and to the step what rounding added."""
    x = torch.tensor([0.31, -0.77, 4.0, -5.0], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = bits.quantise(x, step, ON(n, dtype=torch.float64))
    y[0].backward(retain_graph=True)
    assert x.grad.tolist() == [1, 0, 0, 0]
    x.grad = step.grad = None
    y[1].backward(retain_graph=True)
    assert x.grad.tolist() == [0, 1, 0, 0]
    assert step.grad.item() == pytest.approx((y[1] - x[1]).item(), abs=1e-9)
    gate = torch.zeros(max(n, 1), dtype=torch.float64, requires_grad=True)
    bits.quantise(x.detach(), step.detach(), gate)[0].backward()
    part = bits.quantise(x.detach(), step.detach(), ON(1, dtype=torch.float64))[0]
    assert gate.grad[0] == part - bits.quantise(x.detach(), step.detach(), [])[0]


def test_rounding_is_exact_and_passes_gradients():
    x = torch.tensor([0.5, 1.5, -2.5, 0.49999997, 1e7 + 1, -3.2, 1e-30], requires_grad=True)
    assert torch.equal(bits.round_through(x), x.round())
    bits.round_through(x).sum().backward()
    assert x.grad.tolist() == [1] * 7


def test_the_numbers_of_a_gate():
    assert pytest.approx(-1.5985968, abs=1e-7) == bits.SHIFT
    six = torch.tensor(6.0, dtype=torch.float64)
    assert 1 - bits.open_probability(six).item() == pytest.approx(5.009e-4, rel=1e-3)
    assert bits.open_probability(six).item() == pytest.approx(0.9994991, abs=1e-7)
    flip = -0.9353026
    near = torch.tensor([flip - 1e-6, flip + 1e-6], dtype=torch.float64)
    assert bits.final_gates(near).tolist() == [0, 1]
    assert 1 - bits.open_probability(torch.tensor(flip)).item() == pytest.approx(0.34, abs=1e-6)


def test_drawn_gates_are_open_as_often_as_they_should_be():
    noise = bits.noise(200_000, seed=1)
    for phi in (-1.5, 0.0, 2.0, 6.0):
        z = bits.sampled_gates(torch.tensor(phi), noise)
        assert 0 <= z.min() <= z.max() <= 1
        assert (z > 0).float().mean().item() == pytest.approx(
            bits.open_probability(torch.tensor(phi)).item(), abs=0.004
        )
        stretched = torch.sigmoid((noise + phi) / (2 / 3)) * 1.2 - 0.1
        torch.testing.assert_close(z, stretched.clamp(0, 1))
    assert bits.sampled_gates(torch.tensor(6.0), torch.tensor(0.0)) == 1, "the median"
    assert noise.isfinite().all()
    assert torch.equal(bits.noise(9, seed=4), bits.noise(9, seed=4))
    assert not torch.equal(bits.noise(9, seed=4), bits.noise(9, seed=5))


def test_a_gate_that_is_off_takes_the_finer_ones_with_it():
    phi = torch.tensor([[6.0, 6, 6], [6, -2, 6], [-1.99, -2.01, 6], [-3, 6, 6]])
    assert bits.not_off(phi).tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_prefix_of_the_ranks():
    gates = torch.tensor([1.0, 0.9, 0.8, 0.4, 1.0])
    assert bits.prefix(gates).tolist() == [1, 1, 1, 1, 0, 0]
    assert bits.prefix(torch.tensor([0.0, 1, 1])).tolist() == [1, 0, 0, 0], "the first is kept"
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        used = bits.prefix(torch.rand(7, generator=generator) ** 0.2)
        assert (used.diff() <= 0).all(), "monotone"
        assert set(used.tolist()) <= {0, 1}
    gates.requires_grad_()
    bits.prefix(gates)[3].backward()
    torch.testing.assert_close(gates.grad, torch.tensor([0.72, 0.8, 0.9, 0, 0]))


def test_widths():
    gates = torch.tensor([[0.0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    assert bits.width(gates).tolist() == [2, 4, 8, 16, 32]


def test_prices():
    phi = torch.full((2, 3), 6.0, dtype=torch.float64)
    q = 0.9994991
    want = 1 + q + q**2 + q**3
    assert bits.expected_cost(phi, None).tolist() == pytest.approx([want, want], abs=1e-6)
    unit = torch.tensor([1.0, 0.25], dtype=torch.float64)
    want = 2 + 4 * q + 8 * q**2 + 16 * q**3
    assert bits.expected_cost(phi, unit).tolist() == pytest.approx([want, want / 4], abs=1e-5)
    for unit_ in (None, unit):
        for i in range(3):
            less = phi.clone()
            less[0, i] -= 0.5
            assert bits.expected_cost(less, unit_)[0] < bits.expected_cost(phi, unit_)[0]
            assert bits.expected_cost(less, unit_)[1] == bits.expected_cost(phi, unit_)[1]


def test_each_vector_has_a_range_of_its_own():
    gates = ON(2)
    u = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [1e-6, 1.0, 300.0]
    ).view(3, 1, 1)
    got = bits.on_own_range(u, gates)
    step = u.abs().amax(-1, keepdim=True) * 2 / 255
    assert ((got - u).abs() <= step / 2 * 1.001).all()
    assert torch.equal(bits.on_own_range(u[1, 2], gates), got[1, 2]), "whatever stands beside it"
    assert bits.on_own_range(u, None) is u
    zero = torch.zeros(2, 5, requires_grad=True)
    rounded = bits.on_own_range(zero, gates)
    rounded.sum().backward()
    assert rounded.abs().max() == 0
    assert zero.grad.isfinite().all()
    short = bits.on_own_range(u.bfloat16(), gates)
    assert short.dtype == torch.bfloat16
