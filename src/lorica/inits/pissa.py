"""PiSSA: A and B from the r largest singular values of W, and their vectors.

With W = U S V^T: B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) V_r^T, and y = W x + s (B A - B0 A0) x.
Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation", 2024,
arXiv:2404.02948. `niter` is the paper's fast randomised decomposition.

Differences from the paper: it writes W - s B0 A0 into the base; here the base is unchanged and the
frozen B0 A0 is subtracted, so that the adapter is exactly a LoRA of rank 2 r on it. The randomised
decomposition computes twice as many components as it uses. Dropout acts on the input of the whole
difference, so that it has no effect at the start; the paper's code drops the input of B A only. On
a quantised base the decomposition is that of the quantised weight; the paper quantises W - s B0 A0,
which leaves a smaller error.

    I  in_features   O  out_features   R  r
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lorica.core.bounds import Bounds
from lorica.core.initialization import Initialization, weight_to_decompose
from lorica.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Pissa(Initialization, name="pissa"):
    subtracts_initial: ClassVar[bool] = True
    niter: Annotated[int, Bounds(ge=1)] | None = None
    """Iterations of a randomised decomposition, which is faster; None: the exact one."""

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        weight = weight_to_decompose(site, r, "pissa")
        if self.niter is None:
            u, singular, v = torch.linalg.svd(weight, full_matrices=False)
        else:
            u, singular, vt = torch.svd_lowrank(weight, min(2 * r, *weight.shape), self.niter)
            v = vt.T
        root = (singular[:r] / scale).sqrt()
        return root.unsqueeze(1) * v[:r], u[:, :r] * root
