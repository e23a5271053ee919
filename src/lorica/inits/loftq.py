"""LoftQ: begin with the best rank-r correction of what quantisation did to W.

With W the original weight, Q the quantised one and W - Q = U S V^T: s B A = U_r S_r V_r^T, split
evenly, so that ||W - Q - s B A|| <= ||W - Q||. Further rounds quantise W - s B A anew and correct
what that did: Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
2023, arXiv:2310.08659, algorithm 1. The paper has no scale s; PEFT leaves it in the forward pass
alone, which is right for s = 1 only. Here it is divided out, so that the product is the
correction whatever alpha is.

One round goes with the base's own codes and is the default. The paper does five, which needs other
codes than the base's: `loftq_iters_5`. The base is never written to, so the adapter then keeps a
second set of codes for its layers, as large as the base's. It makes them from the original weights
and the factors of the last round but one, which are in its folder. Such an adapter is not mixed
with others in a batch, and PEFT cannot read it. The error ||W - Q - s B A|| falls further with each
round (docs/methods/results.md).

This start does not begin as the quantised base but nearer to the original one. It needs the
original weights, which a base that was quantised when it was loaded knows.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lorica.core.bounds import Bounds
from lorica.core.site import Site
from lorica.core.start import Start, matrix_of, skipped
from lorica.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Loftq(Start, name="loftq"):
    starts_as_base: ClassVar[bool] = False
    iters: Annotated[int, Bounds(ge=1)] = 1
    """Rounds of quantising and correcting; more than one keep codes of their own."""

    @property
    def repacks(self) -> bool:
        return self.iters > 1

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        return self.rounds(site, r, scale, self.iters)

    @torch.no_grad()
    def pair_of_codes(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        if skipped():
            return torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)
        return self.rounds(site, r, scale, self.iters - 1)

    def rounds(self, site: Site, r: int, scale: float, count: int) -> tuple[Tensor, Tensor]:
        """A and B after `count` rounds."""
        if site.is_dense:
            raise ConfigError(
                f"loftq corrects what quantisation did, and {site.name} is not quantised.",
                fix='load the base in 4 or 8 bit, or use init="kaiming"',
            )
        original = site.original()
        if original is None:
            raise ConfigError(
                f"loftq needs the original weight of {site.name}, and only the quantised is known.",
                fix='load the base from its float files with quantisation, or use init="kaiming"',
            )
        packed = matrix_of(site, r, "loftq")
        a, b = correction(original - packed, r, scale)
        for _ in range(count - 1):
            packed = site.requantised(original - scale * b @ a)
            a, b = correction(original - packed, r, scale)
        return a, b


def correction(error: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """(a (R, I), b (O, R)), for which s b a is the nearest to `error` (O, I) of rank r."""
    u, singular, v = torch.linalg.svd(error, full_matrices=False)
    root = (singular[:r] / scale).sqrt()
    return root.unsqueeze(1) * v[:r], u[:, :r] * root
