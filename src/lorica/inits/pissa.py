"""PiSSA: begin with the r largest singular directions of W, and train those.

With W = U S V^T: B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) V_r^T, and y = W x + s (B A - B0 A0) x.
Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation", 2024,
arXiv:2404.02948. The paper writes W - s B0 A0 into the base; here the base stays as it is and the
frozen B0 A0 is subtracted, so that the adapter is exactly a LoRA of rank 2 r on the untouched
base. The randomised decomposition is the paper's fast one; that it looks at twice as many
directions as it keeps is ours. Also ours: dropout acts on the input of the whole difference, so
that it is nothing at the start; the paper's code drops the input of B A alone. On a quantised base
Q the directions are those of Q; the paper quantises W - s B0 A0, which leaves a smaller error.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lorica.core.bounds import Bounds
from lorica.core.site import Site
from lorica.core.start import Start, matrix_of


@dataclass(frozen=True, kw_only=True)
class Pissa(Start, name="pissa"):
    takes_out: ClassVar[bool] = True
    niter: Annotated[int, Bounds(ge=1)] | None = None
    """Rounds of a randomised decomposition, which is faster; None: the exact one."""

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        weight = matrix_of(site, r, "pissa")
        if self.niter is None:
            u, singular, v = torch.linalg.svd(weight, full_matrices=False)
        else:
            u, singular, vt = torch.svd_lowrank(weight, min(2 * r, *weight.shape), self.niter)
            v = vt.T
        root = (singular[:r] / scale).sqrt()
        return root.unsqueeze(1) * v[:r], u[:, :r] * root
