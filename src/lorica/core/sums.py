"""Weighted sums of changes of one weight, as the methods that combine adapters define them.

    D_i (O, I)  the change W'_i - W of part i     w_i  its weight

    linear        sum_i w_i D_i
    ties          of each D_i only the `density` largest numbers; where the signs of w_i D_i differ,
                  only those of the sign with the larger sum
    dare_linear   of each D_i a random share `density`, divided by it; then as linear
    dare_ties     the same; then signs as in ties

Sources: Ilharco et al., "Editing models with task arithmetic", 2023, arXiv:2212.04089 (linear, and
weights below 0); Yadav et al., "TIES-merging", 2023, arXiv:2306.01708, section 4; Yu et al.,
"Language models are super Mario" (DARE), 2024, arXiv:2311.03099, section 3.2. TIES takes the mean
of the numbers that are left; here they are summed with their weights, as PEFT does, so that a sum
of one part is that part.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

CombineMethod = Literal["linear", "svd", "cat", "ties", "dare_ties", "dare_linear"]
METHODS: tuple[str, ...] = get_args(CombineMethod)
DENSE = ("ties", "dare_ties", "dare_linear")
"""Methods that act on single numbers of a change: the sum has full rank."""


def summed(
    method: CombineMethod,
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generator: torch.Generator,
) -> Tensor:
    """The sum of `deltas` (O, I), in float32. generator: of what DARE drops."""
    changes = list(deltas)
    if method.startswith("dare"):
        changes = [_dropped(delta, density, generator) for delta in changes]
    elif method == "ties":
        changes = [_trimmed(delta, density) for delta in changes]
    scaled = torch.stack([w * delta for w, delta in zip(weights, changes, strict=True)])
    if method in ("ties", "dare_ties"):
        sign = scaled.sum(0).sign()
        scaled = torch.where(scaled.sign() == sign, scaled, 0)
    return scaled.sum(0)


def cancelled(deltas: Sequence[Tensor], weights: Sequence[float]) -> tuple[float, float]:
    """(what cancels in the sum, and all): the 1-norms of the parts above that of their sum."""
    scaled = [w * delta for w, delta in zip(weights, deltas, strict=True)]
    every = sum(float(delta.abs().sum()) for delta in scaled)
    return every - float(torch.stack(scaled).sum(0).abs().sum()), every


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """The `density` numbers of the largest magnitude; the others are 0."""
    keep = max(round(density * delta.numel()), 1)
    if keep >= delta.numel():
        return delta
    threshold = delta.abs().flatten().kthvalue(delta.numel() - keep).values
    return torch.where(delta.abs() > threshold, delta, 0)


def _dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A random share `density` of the numbers, divided by it."""
    kept = torch.rand(delta.shape, generator=generator) < density
    return torch.where(kept.to(delta.device), delta / density, 0)
