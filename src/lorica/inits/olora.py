"""OLoRA: begin with the first r columns of an orthonormal basis of W, and what W is in them.

With the thin decomposition W = Q R: B0 = Q[:, :r], A0 = R[:r], and y = W x + s (B A - B0 A0) x.
Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024,
arXiv:2406.01775 (the number is unverified; the formula is that of PEFT's code). As in pissa, the
base stays as it is, and the adapter is a LoRA of rank 2 r on it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.site import Site
from lorica.core.start import Start, matrix_of


@dataclass(frozen=True, kw_only=True)
class Olora(Start, name="olora"):
    takes_out: ClassVar[bool] = True

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        q, upper = torch.linalg.qr(matrix_of(site, r, "olora"))
        return upper[:r], q[:, :r]
