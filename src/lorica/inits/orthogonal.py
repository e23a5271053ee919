"""A and B from the two halves of one orthogonal matrix, so that B A = 0 though neither is zero.

With Q orthogonal (R, R), its even rows P and odd rows S: B = N P / 10 and A = S^T M / 10, where N
(O, R/2) and M (R/2, I) are standard normal. P S^T = 0. From PEFT's "orthogonal", which takes it
from a blog post (Rethinking LoRA initialisations, D. Data, 2024); there is no paper, and the
factor 1/10 is that code's. Both factors have a gradient from the first step on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.core.site import Site
from lorica.core.start import Start
from lorica.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Start, name="orthogonal"):
    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        if r % 2:
            raise ConfigError(f"the start orthogonal needs an even r, not {r}.", fix=f"use {r + 1}")
        q = torch.linalg.qr(torch.randn(r, r)).Q
        a = q[0::2].T @ torch.randn(r // 2, site.in_features) / 10
        b = torch.randn(site.out_features, r // 2) @ q[1::2] / 10
        return a, b
