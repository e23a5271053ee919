"""Kaiming: A is uniform and B zero, as in the code of the LoRA paper.

A ~ U(-1/sqrt(I), 1/sqrt(I)), which is torch's kaiming_uniform_ with a = sqrt(5): Hu et al., 2021,
arXiv:2106.09685, loralib. For an embedding A is zero and B ~ N(0, 1), so that the rows of the
tokens that occur learn first.

    I  in_features   O  out_features   R  r
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.initialization import Initialization
from lorica.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Kaiming(Initialization, name="kaiming"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "expert")

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        a, b = torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)
        if site.kind == "embedding":
            return a, b.normal_()
        bound = 1 / math.sqrt(site.in_features)
        return a.uniform_(-bound, bound), b
