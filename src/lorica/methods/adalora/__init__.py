"""AdaLoRA: y = W x + s B diag(e) A x, where training prunes the least important components.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023,
arXiv:2303.10512, section 3. Component i of a site is row i of A, e_i and column i of B. A and B
start as N(0, 0.02^2) and e as zero, so that the adapted model starts as the base. The scale is
s = alpha / (r + 1e-5) with the initial rank r, as in the authors' code and in PEFT.

- Penalty: the rows of A and the columns of B are kept close to orthonormal.
- Score of a component (section 3.2): the importance of e_i, plus the mean importance of its row of
  A and of its column of B. As in the authors' code, it uses the weights after the step and the
  gradients before it.
- Budget: the total rank over all sites falls with (1 - (t - tinit) / (T - tfinal - tinit))^3 at
  step t of T. (Equation 14 of the paper prints this with a slip.) The components with the lowest
  scores get e_i = 0. They may come back until step T - tfinal; from then on the ranks are fixed.

mode="increase" grows the ranks instead, after IncreLoRA: Zhang et al., 2023, arXiv:2308.12043.
Every site starts with rank 1, and its next component warms up with e_i = 1e-5.

Differences from IncreLoRA, whose code needs the gradient of W and allocates new tensors:
a site's score is the sum of the importances of its e; the total rank grows linearly; s stays
alpha / (r + 1e-5); r is the largest rank of a site.

    I  in_features   O  out_features   R  r
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lorica.core import ranking
from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.site import Site
from lorica.kernels.low_rank import low_rank
from lorica.methods.adalora.schedule import Decrease, Increase


@dataclass(frozen=True, kw_only=True)
class Adalora(Method, name="adalora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    count: ClassVar[str] = "r * (I + O + 1)"
    rates: ClassVar[Rates] = (0.015, 0.0005, 3.0)
    rate_source: ClassVar[str] = "Zhang et al. 2023, table 8 (MNLI)"
    r: Annotated[int, Bounds(ge=1)] = 12
    """Initial rank of every site; with mode=increase, the largest rank that a site may reach."""
    target_r: Annotated[int, Bounds(ge=1)] | None = None
    """Average rank of the sites at the end; None: two thirds of r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which does not change with the ranks; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    mode: Literal["decrease", "increase"] = "decrease"
    """decrease: prune from rank r to target_r. increase: grow from rank 1 (IncreLoRA)."""
    tinit: Annotated[int, Bounds(ge=0)] | None = None
    """Optimizer steps before the ranks begin to change; None: a fifth of the steps before the final
    phase, which is a tenth of the run if tfinal is None too."""
    tfinal: Annotated[int, Bounds(ge=0)] | None = None
    """Optimizer steps at the end with fixed ranks; None: half of the steps after tinit."""
    deltaT: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps from one change of the ranks to the next; None: a five-hundredth of the run,
    between 1 and 100."""
    beta1: Annotated[float, Bounds(gt=0, lt=1)] = 0.85
    """Decay of the moving average of the sensitivity, in (0, 1)."""
    beta2: Annotated[float, Bounds(gt=0, lt=1)] = 0.85
    """Decay of the moving average of the uncertainty, in (0, 1)."""
    orth_reg_weight: Annotated[float, Bounds(ge=0)] = 0.5
    """Weight of the orthonormality penalty in the loss; 0: no penalty."""
    orth_mode: Literal["frobenius_mean", "squared_sum"] = "frobenius_mean"
    """frobenius_mean: the mean of ||Q Q^T - 1|| over all A and B^T, as in the authors' code.
    squared_sum: the sum of the squared norms, as in the paper."""

    def __post_init__(self):
        super().__post_init__()
        ranking.check_target_rank(self)

    @property
    def scale(self) -> float:
        return (2 * self.r if self.alpha is None else self.alpha) / (self.r + 1e-5)

    def build(self, site: Site, shared: Any) -> "AdaloraAdapter":
        return AdaloraAdapter(site, self)

    def for_site(self, **settings: Any) -> Self:
        if self.target_r is not None and "r" in settings:
            settings["target_r"] = min(self.target_r, settings["r"])
        return super().for_site(**settings)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> "Decrease":
        schedule = Decrease if self.mode == "decrease" else Increase
        return schedule(
            adapters,
            ranking.Phases.of(total, self.tinit, self.tfinal, self.deltaT),
            betas=(self.beta1, self.beta2),
            penalty_weight=self.orth_reg_weight,
            squared=self.orth_mode == "squared_sum",
        )


class AdaloraAdapter(Adapter):
    def __init__(self, site: Site, method: Adalora):
        super().__init__()
        self.scale, self.p = method.scale, method.dropout
        self.target = method.target_r or ranking.default_target(method.r)
        self.a = nn.Parameter(0.02 * torch.randn(method.r, site.in_features))
        self.e = nn.Parameter(torch.zeros(method.r))
        self.b = nn.Parameter(0.02 * torch.randn(site.out_features, method.r))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.e, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = ranking.active_factors(self.a, self.e, self.b)
        return a, self.scale * b
