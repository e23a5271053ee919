"""Orthogonal: A and B from two halves of one orthogonal matrix, so that B A = 0 and neither is
zero.

With Q orthogonal (R, R), P its even and S its odd rows: B = N P / 10 and A = S^T M / 10, where N
(O, R/2) and M (R/2, I) are standard normal. P S^T = 0. It is PEFT's "orthogonal", which is taken
from a blog post (Rethinking LoRA initialisations, D. Data, 2024); there is no paper, and the factor
1/10 is from that code. Both matrices have a gradient from the first step on.

    I  in_features   O  out_features   R  r, even
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.initialization import Initialization
from lorica.core.site import Site
from lorica.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Initialization, name="orthogonal"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "expert")

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        if r % 2:
            raise ConfigError(f"init=orthogonal needs an even r, and r is {r}.", fix=f"use {r + 1}")
        q = torch.linalg.qr(torch.randn(r, r)).Q
        a = q[0::2].T @ torch.randn(r // 2, site.in_features) / 10
        b = torch.randn(site.out_features, r // 2) @ q[1::2] / 10
        return a, b
