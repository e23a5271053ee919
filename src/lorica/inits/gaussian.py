"""Gaussian: A is normal and B zero, as the text of the LoRA paper describes it.

A ~ N(0, 1/r^2), with the standard deviation of PEFT's "gaussian"; Hu et al., 2021,
arXiv:2106.09685, section 4.1, gives none. For an embedding A is zero and B ~ N(0, 1).

    I  in_features   O  out_features   R  r
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.initialization import Initialization
from lorica.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Gaussian(Initialization, name="gaussian"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "expert")

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        a, b = torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)
        if site.kind == "embedding":
            return a, b.normal_()
        return a.normal_(std=1 / r), b
