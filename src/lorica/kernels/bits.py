"""Grids of 2, 4, 8, 16 and 32 bits that lie in one another, and gates that choose among them.

van Baalen et al., "Bayesian Bits: Unifying Quantization and Pruning", 2020, arXiv:2005.07093,
section 2. A number is rounded to steps of s2; what that leaves to steps of s2 / 5, and so on:

    x_q = x2 + z4 (e4 + z8 (e8 + z16 (e16 + z32 e32))),   e_b = s_b round((x - x2 - ... ) / s_b)

Rounding passes gradients as if it were not there, and nothing is clipped: a number past the range
that the step was chosen for takes further steps. A gate z is hard-concrete: while training it is
drawn in [0, 1], with weight on both ends; afterwards it is 0 or 1.

    N  gates of a grid: 1 for 4 bits, 2 for 8, 3 for 16, 4 for 32
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

FINER = (5, 17, 257, 65537)
"""What a step is divided by for 4, 8, 16 and 32 bits: 2^2 + 1, 2^4 + 1, ..."""
EDGE = 1.4999
"""Steps s2 from zero to the end of a range: 2, 4, 8 bits have 3, 15, 255 levels in it. Short of
1.5, which would be rounded up to one level more."""
BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1  # temperature, and the ends the draw is stretched to
SHIFT = BETA * math.log(-GAMMA / ZETA)
CLOSED = 0.34
"""A gate that is 0 with at least this probability is closed after training."""
OFF = -2.0
"""A gate at or below this, and all finer ones of its grid, stay closed in training as well."""


def round_through(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return x + (x.round() - x).detach()


def quantise(x: Tensor, step: Tensor, gates: Sequence[Tensor] | Tensor) -> Tensor:
    """x on the grid that the gates leave open.

    step: s2, positive, broadcastable to x. gates: N of them. Within EDGE steps of zero b bits have
    2^b - 1 levels; beyond, the grid goes on.
    """
    rest = x / step
    parts, unit = [round_through(rest)], 1
    for finer in FINER[: len(gates)]:
        rest, unit = rest - parts[-1], unit * finer
        parts.append(round_through(rest * unit) / unit)
    inner = torch.zeros_like(rest)
    for gate, part in zip(reversed(list(gates)), reversed(parts[1:]), strict=True):
        inner = gate * (part + inner)
    return step * (parts[0] + inner)


def chance(phi: Tensor) -> Tensor:
    """The probability that a gate is not 0."""
    return torch.sigmoid(phi - SHIFT)


def drawn(phi: Tensor, noise: Tensor) -> Tensor:
    """Gates in training. noise: log(u / (1 - u)) of u uniform in (0, 1); 0 is the median."""
    stretched = torch.sigmoid((noise + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def settled(phi: Tensor) -> Tensor:
    """Gates after training, 0 or 1: open above phi = -0.9353."""
    return (torch.sigmoid(SHIFT - phi) < CLOSED).to(phi.dtype)


def kept(phi: Tensor) -> Tensor:
    """0 where a gate (..., N), or a coarser one of its grid, is off for good in training."""
    return (phi > OFF).to(phi.dtype).cumprod(-1)


def prefix(gates: Tensor) -> Tensor:
    """Which of R ranks R - 1 gates leave in use: the first one, and those up to a closed gate."""
    return F.pad(round_through(gates.cumprod(0)), (1, 0), value=1.0)


def noise(count: int, seed: int) -> Tensor:
    """What `drawn` takes, for `count` gates; the same for the same seed."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return u.clamp(1e-6, 1 - 1e-6).logit()


def on_own_range(u: Tensor, gates: Tensor | None) -> Tensor:
    """u (..., K) on a grid for each vector of K numbers, as wide as its largest; None: as it is."""
    if gates is None:
        return u
    v = u.to(gates.dtype)
    step = v.detach().abs().amax(-1, keepdim=True).clamp_min(1e-20) / EDGE
    return quantise(v, step, gates).to(u.dtype)


def width(gates: Tensor) -> Tensor:
    """Bits of grids whose gates (..., N) are 0 or 1: 2, 4, 8, 16 or 32."""
    return 2 ** (1 + gates.cumprod(-1).sum(-1)).long()


def price(phi: Tensor, unit: Tensor | None) -> Tensor:
    """What grids are expected to cost: (Q,), for gates phi (Q, N).

    The sum over widths b of c(b) times the probability that b bits are in use at least.
    unit: (Q,), c(b) = unit b; None: c(b) = 1.
    """
    use = F.pad(chance(phi).cumprod(-1), (1, 0), value=1.0)  # of 2, 4, 8, ...
    if unit is None:
        return use.sum(-1)
    return (use * 2 ** torch.arange(1, use.shape[-1] + 1, device=phi.device)).sum(-1) * unit
