"""LoftQ: begin with the best rank-r correction of what quantisation did to W.

With W the original weight, Q the quantised one and W - Q = U S V^T: s B A = U_r S_r V_r^T, split
evenly, so that ||W - Q - s B A|| <= ||W - Q||. Li et al., "LoftQ: LoRA-Fine-Tuning-Aware
Quantization for Large Language Models", 2023, arXiv:2310.08659, one round (T = 1) of its
alternation: further rounds quantise the base anew, and ours is never written to. The paper has no
scale s; PEFT leaves it in the forward pass alone, which is right for s = 1 only. Here it is
divided out, so that the product is the correction whatever alpha is.

This start does not begin as the quantised base but nearer to the original one. It needs the
original weights, which a base that was quantised when it was loaded knows.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.site import Site
from lorica.core.start import Start, matrix_of
from lorica.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Loftq(Start, name="loftq"):
    starts_as_base: ClassVar[bool] = False

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
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
        error = original - matrix_of(site, r, "loftq")
        u, singular, v = torch.linalg.svd(error, full_matrices=False)
        root = (singular[:r] / scale).sqrt()
        return root.unsqueeze(1) * v[:r], u[:, :r] * root
