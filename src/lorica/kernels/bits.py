"""Nested grids of 2, 4, 8, 16 and 32 bits, and gates that choose among them (Bayesian Bits).

van Baalen et al., "Bayesian Bits: Unifying Quantization and Pruning", 2020, arXiv:2005.07093,
section 2. A number is rounded to steps of s2, the remainder to steps of s2 / 5, and so on:

    x_q = x2 + z4 (e4 + z8 (e8 + z16 (e16 + z32 e32))),   e_b = s_b round((x - x2 - ... ) / s_b)

Rounding passes gradients through, and nothing is clipped: a number beyond the range that the step
was chosen for takes further steps. A gate z is hard-concrete: in training it is sampled in [0, 1],
with probability mass at both ends; afterwards it is 0 or 1.

    N  gates of a grid: 1 for 4 bits, 2 for 8, 3 for 16, 4 for 32
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

FINER = (5, 17, 257, 65537)
"""Divisors of the step for 4, 8, 16 and 32 bits: 2^2 + 1, 2^4 + 1, ..."""
EDGE = 1.4999
"""Steps s2 from zero to the end of the range: 2, 4, 8 bits have 3, 15, 255 levels there. It is just
below 1.5, which would be rounded up to another level."""
BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1  # temperature, and the ends of the stretched sample
SHIFT = BETA * math.log(-GAMMA / ZETA)
CLOSED = 0.34
"""A gate that is 0 with at least this probability is closed after training."""
OFF = -2.0
"""A gate at or below this, and all finer gates of its grid, are closed in training too."""


def round_through(x: Tensor) -> Tensor:
    """x rounded; the gradient is that of x (straight-through)."""
    return x + (x.round() - x).detach()


def quantise(x: Tensor, step: Tensor, gates: Sequence[Tensor] | Tensor) -> Tensor:
    """x rounded to the grid that the open gates give.

    step: s2, positive, broadcastable to x. gates: N of them. Within EDGE steps of zero b bits have
    2^b - 1 levels; beyond, the grid goes on.
    """
    remainder = x / step
    terms, unit = [round_through(remainder)], 1
    for finer in FINER[: len(gates)]:
        remainder, unit = remainder - terms[-1], unit * finer
        terms.append(round_through(remainder * unit) / unit)
    inner = torch.zeros_like(remainder)
    for gate, term in zip(reversed(list(gates)), reversed(terms[1:]), strict=True):
        inner = gate * (term + inner)
    return step * (terms[0] + inner)


def open_probability(phi: Tensor) -> Tensor:
    """The probability that a gate is not 0."""
    return torch.sigmoid(phi - SHIFT)


def sampled_gates(phi: Tensor, noise: Tensor) -> Tensor:
    """Gates in training. noise: log(u / (1 - u)) with u uniform in (0, 1); 0 gives the median."""
    stretched = torch.sigmoid((noise + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def final_gates(phi: Tensor) -> Tensor:
    """Gates after training, 0 or 1: open above phi = -0.9353."""
    return (torch.sigmoid(SHIFT - phi) < CLOSED).to(phi.dtype)


def not_off(phi: Tensor) -> Tensor:
    """0 where a gate (..., N), or a coarser gate of its grid, is at or below OFF; else 1."""
    return (phi > OFF).to(phi.dtype).cumprod(-1)


def prefix(gates: Tensor) -> Tensor:
    """(R,) which ranks are in use under R - 1 gates: the first, and those before a closed gate."""
    return F.pad(round_through(gates.cumprod(0)), (1, 0), value=1.0)


def noise(count: int, seed: int) -> Tensor:
    """The noise of `sampled_gates` for `count` gates; the same for the same seed."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return u.clamp(1e-6, 1 - 1e-6).logit()


def on_own_range(u: Tensor, gates: Tensor | None) -> Tensor:
    """u (..., K), each vector rounded to a grid up to its largest number; None: as is."""
    if gates is None:
        return u
    v = u.to(gates.dtype)
    step = v.detach().abs().amax(-1, keepdim=True).clamp_min(1e-20) / EDGE
    return quantise(v, step, gates).to(u.dtype)


def width(gates: Tensor) -> Tensor:
    """The bits of grids with gates (..., N) of 0 or 1: 2, 4, 8, 16 or 32."""
    return 2 ** (1 + gates.cumprod(-1).sum(-1)).long()


def expected_cost(phi: Tensor, unit: Tensor | None) -> Tensor:
    """The expected cost of grids: (Q,), for gates phi (Q, N).

    The sum over widths b of c(b) times the probability that at least b bits are in use.
    unit: (Q,), c(b) = unit b; None: c(b) = 1.
    """
    use = F.pad(open_probability(phi).cumprod(-1), (1, 0), value=1.0)  # of 2, 4, 8, ...
    if unit is None:
        return use.sum(-1)
    return (use * 2 ** torch.arange(1, use.shape[-1] + 1, device=phi.device)).sum(-1) * unit
