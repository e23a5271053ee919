"""LoftQ: A and B as the best rank-r correction of the quantisation error of W.

With W the original weight, Q the quantised one and W - Q = U S V^T: s B A = U_r S_r V_r^T, split
evenly, so that ||W - Q - s B A|| <= ||W - Q||. Li et al., "LoftQ: LoRA-Fine-Tuning-Aware
Quantization for Large Language Models", 2023, arXiv:2310.08659, algorithm 1: further rounds
quantise W - s B A again and correct the new error. The paper has no scale s, and PEFT applies it in
the forward pass only, which is right for s = 1. Here it is divided out, so that s B A is the
correction whatever alpha is.

One round, the default, keeps the base's own codes. The paper does five, which needs other codes:
`loftq_iters_5`. The base is never written to, so that the adapter then holds a second set of codes
for its layers, as large as the base's. It computes them from the original weights and the factors
of the last round but one, which are in its folder. Such an adapter cannot be mixed with others in a
batch, and PEFT cannot read it. The error ||W - Q - s B A|| falls with each round
(docs/methods/results.md).

The adapted model does not start as the quantised base but closer to the original one. The original
weights are known if the base was quantised when it was loaded.

    I  in_features   O  out_features   R  r
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lorica.core.bounds import Bounds
from lorica.core.initialization import (
    Initialization,
    initialization_skipped,
    weight_to_decompose,
)
from lorica.core.site import Site
from lorica.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Loftq(Initialization, name="loftq"):
    starts_as_base: ClassVar[bool] = False
    iters: Annotated[int, Bounds(ge=1)] = 1
    """Rounds of quantising and correcting; with more than one the adapter holds its own codes."""

    @property
    def requantises(self) -> bool:
        return self.iters > 1

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        return self.rounds(site, r, scale, self.iters)

    @torch.no_grad()
    def requantised_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        if initialization_skipped():
            return torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)
        return self.rounds(site, r, scale, self.iters - 1)

    def rounds(self, site: Site, r: int, scale: float, count: int) -> tuple[Tensor, Tensor]:
        """A and B after `count` rounds."""
        if site.is_dense:
            raise ConfigError(
                f"init=loftq corrects the error of quantisation, and {site.name} is not quantised.",
                fix='load the base in 4 or 8 bit, or use init="kaiming"',
            )
        original = site.original()
        if original is None:
            raise ConfigError(
                f"init=loftq needs the original weight of {site.name}, which is not known.",
                fix='load the base from its float files with quantisation, or use init="kaiming"',
            )
        packed = weight_to_decompose(site, r, "loftq")
        a, b = correction(original - packed, r, scale)
        for _ in range(count - 1):
            packed = site.requantised(original - scale * b @ a)
            a, b = correction(original - packed, r, scale)
        return a, b


def correction(error: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """(a (R, I), b (O, R)) such that s b a is the best approximation of rank r of `error` (O,
    I)."""
    u, singular, v = torch.linalg.svd(error, full_matrices=False)
    root = (singular[:r] / scale).sqrt()
    return root.unsqueeze(1) * v[:r], u[:, :r] * root
