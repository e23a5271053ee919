"""OLoRA: A and B from the QR decomposition of W.

With the thin decomposition W = Q R: B0 = Q[:, :r], A0 = R[:r], and y = W x + s (B A - B0 A0) x.
Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024,
arXiv:2406.01775 (the number is unverified; the formula is that of PEFT's code). As with pissa, the
base is unchanged, and the adapter is a LoRA of rank 2 r on it.

    I  in_features   O  out_features   R  r
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.initialization import Initialization, weight_to_decompose
from lorica.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Olora(Initialization, name="olora"):
    subtracts_initial: ClassVar[bool] = True

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        q, upper = torch.linalg.qr(weight_to_decompose(site, r, "olora"))
        return upper[:r], q[:, :r]
