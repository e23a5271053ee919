"""DoRA-dynamic: y = W x + s B diag(c) A x, where training prunes the smallest components.

Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution",
2024, arXiv:2405.17357. Not related to `dora`. It follows the authors' code; the paper's body was
not available to us. A and B start uniform within sqrt(6 / I) and sqrt(6 / r), c at zero, so that
the adapted model starts as the base. The scale is s = alpha / r with the initial rank r.

- Score of a component: its share of its site's update, |c_i| |B_i| |A_i| / ||B diag(c) A||, as a
  moving average over the steps.
- Pruning starts at step start_ratio * T of T. The components with the lowest scores over all sites
  get c_i = 0. Their number grows with the cube of the elapsed time and is at least one. They may
  come back until step (1 - end_ratio) * T; from then on the ranks are fixed.
- Penalty (DEM), until then: the variance within the rows of A and the columns of B.

Differences from the authors' code: nothing is pruned if target_r is r; ties never prune more than
the budget; the default `interval` depends on the length of the run; a row of one element has no
variance. Their int(T (1 - start_ratio - end_ratio)) is one step short where rounding of floats
misses a whole number (34 run lengths under 3,000 with their ratios: 180, 340, 360, ...); ours is
not.

    I  in_features   O  out_features   R  r
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lorica.core import ranking
from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank

EPS = 1e-8  # added to the norm that a score is divided by


@dataclass(frozen=True, kw_only=True)
class DoraDynamic(Method, name="dora_dynamic"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Mao et al. 2024, arXiv:2405.17357"
    count: ClassVar[str] = "r * (I + O + 1)"
    rates: ClassVar[Rates] = (0.02, 0.0002, 2.0)
    rate_source: ClassVar[str] = "Mao et al. 2024, the authors' configuration"
    r: Annotated[int, Bounds(ge=1)] = 12
    """Initial rank of every site; 1.5 times target_r in the paper."""
    target_r: Annotated[int, Bounds(ge=1)] | None = None
    """Average rank of the sites at the end; None: two thirds of r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which does not change with the ranks; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1); 0.1 in the paper."""
    start_ratio: Annotated[float, Bounds(ge=0, lt=1)] = 0.15
    """Fraction of the run before the first pruning, in [0, 1)."""
    end_ratio: Annotated[float, Bounds(ge=0, lt=1)] = 0.5
    """Fraction of the run after the last pruning, in [0, 1). The sum of both is below 1."""
    interval: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps from one pruning to the next; None: an eightieth of the run, between 1 and
    100."""
    beta: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """Decay of the moving average of the scores, in [0, 1)."""
    eta: Annotated[float, Bounds(ge=0)] = 0.1
    """Weight of the variance penalty (DEM) in the loss; 0: no penalty. 0.1 to 0.5 in the paper."""

    def __post_init__(self):
        super().__post_init__()
        ranking.check_target_rank(self)
        if self.start_ratio + self.end_ratio >= 1:
            raise ConfigError(
                f"{self.name}.start_ratio {self.start_ratio} and end_ratio {self.end_ratio} leave "
                "no steps for pruning.",
                fix="choose them so that their sum is below 1",
            )

    def build(self, site: Site, shared: Any) -> "DoraDynamicAdapter":
        return DoraDynamicAdapter(site, self)

    def for_site(self, **settings: Any) -> Self:
        if self.target_r is not None and "r" in settings:
            settings["target_r"] = min(self.target_r, settings["r"])
        return super().for_site(**settings)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> "Pruning":
        return Pruning(self, adapters, total)


class DoraDynamicAdapter(Adapter):
    def __init__(self, site: Site, method: DoraDynamic):
        super().__init__()
        self.scale = 2.0 if method.alpha is None else method.alpha / method.r
        self.p = method.dropout
        self.target = method.target_r or ranking.default_target(method.r)
        self.a = nn.Parameter(torch.empty(method.r, site.in_features))
        self.c = nn.Parameter(torch.zeros(method.r))
        self.b = nn.Parameter(torch.empty(site.out_features, method.r))
        nn.init.kaiming_uniform_(self.a)
        nn.init.kaiming_uniform_(self.b)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.c, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = ranking.active_factors(self.a, self.c, self.b)
        return a, self.scale * b

    def shares(self) -> Tensor:
        """The size of each component over that of the site's whole update: (R,).

        ||B diag(c) A||^2 = c^T ((B^T B) * (A A^T)) c, so that no (O, I) matrix is needed.
        """
        sizes = self.c.abs() * self.b.norm(dim=0) * self.a.norm(dim=1)
        square = self.c @ ((self.b.T @ self.b) * (self.a @ self.a.T)) @ self.c
        return sizes / (square.clamp_min(0).sqrt() + EPS)


class Pruning(ranking.RankSchedule):
    """Prunes from rank r to target_r.

    As in the authors' code, steps are counted from the first pruning on: p is negative before it.
    The last pruning is at p = last; scores and penalty are computed up to it.
    """

    def __init__(self, method: DoraDynamic, adapters: Mapping[str, DoraDynamicAdapter], total: int):
        super().__init__(adapters, "c")
        self.method = method
        self.wait = round(total * method.start_ratio, 6)
        middle = total * (1 - method.start_ratio - method.end_ratio)
        self.last = int(round(middle, 6))  # 350, not 349.99...
        self.interval = method.interval or min(100, max(1, total // 80))
        self.scores = {site: torch.zeros_like(c.detach()) for site, c in self.coefficients.items()}

    def steps_since_first(self, t: int) -> int:
        """p at step t."""
        return int(t - self.wait)

    def n_pruned(self, t: int) -> int:
        """How many components are pruned at step t, by the cubic budget."""
        elapsed = min(max(self.steps_since_first(t), 0) / self.last, 1.0) if self.last else 1.0
        return int((sum(self.max_ranks.values()) - self.target) * elapsed**3)

    def penalty(self, t: int) -> Tensor | None:
        if not self.method.eta or self.steps_since_first(t) > self.last:
            return None
        matrices = [m for a in self.adapters.values() for m in (a.a, a.b.T) if m.shape[1] > 1]
        sums = [m.var(1).sum() for m in matrices]
        total = torch.stack([s.to(sums[0].device) for s in sums]).sum()
        return self.method.eta * total / (2 * sum(self.max_ranks.values()))

    @torch.no_grad()
    def after_step(self, t: int) -> None:
        p, beta = self.steps_since_first(t), self.method.beta
        if p <= self.last:
            for site, score in self.scores.items():
                score.mul_(beta).add_(self.adapters[site].shares(), alpha=1 - beta)
        if self.target == sum(self.max_ranks.values()):
            return
        due = p == self.last or (0 <= p < self.last and p % self.interval == 0)
        if due or (p > self.last and not self.pruned):
            self.pruned = ranking.lowest(self.scores, max(self.n_pruned(t), 1))
        if due or p > self.last:
            self.zero_pruned()

    def state(self) -> dict[str, Tensor]:
        return {f"{site}.c": score for site, score in self.scores.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for site, score in self.scores.items():
            score.copy_(state[f"{site}.c"])
        self.pruned = {}

    def facts(self) -> dict[str, Any]:
        first, last = max(1, math.floor(self.wait)), math.ceil(self.wait + self.last)
        return super().facts() | {"ranks_change_from": first, "ranks_stay_from": last}
