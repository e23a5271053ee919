"""DoRA-dynamic: y = W x + s B diag(c) A x, and the smallest components of B diag(c) A go.

Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution",
2024, arXiv:2405.17357; no relative of `dora`. Written after the authors' code, as we could not
read the paper's body. A and B start uniform within sqrt(6 / I) and sqrt(6 / r), c at zero;
s = alpha / r with the start rank r. A component scores its share of its site's update,
|c_i| |B_i| |A_i| / ||B diag(c) A||, averaged over steps. From step start_ratio T the lowest
over all sites get c_i = 0; their number grows with the cube of the time that has passed, and at
least one goes. Until (1 - end_ratio) T they may come back; from then on they stay out. Until
then a penalty (DEM) holds down the variance within rows of A and columns of B.

Our own: none goes if target_r is r; ties never take more than the number asked for; `interval`
follows the run's length where it is not given; a row of one number has no variance. The authors'
int(T (1 - start_ratio - end_ratio)) is one step short where the product is a whole number that
floats miss (at 34 run lengths under 3,000 with their ratios: 180, 340, 360, ...); ours is not.
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

EPS = 1e-8  # of the norm that a score is divided by


@dataclass(frozen=True, kw_only=True)
class DoraDynamic(Method, name="dora_dynamic"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Mao et al. 2024, arXiv:2405.17357"
    count: ClassVar[str] = "r * (I + O + 1)"
    rates: ClassVar[Rates] = (0.02, 0.0002, 2.0)
    rate_source: ClassVar[str] = "Mao et al. 2024, the authors' configuration"
    r: Annotated[int, Bounds(ge=1)] = 12
    """Rank of every site at the start; the paper's is 1.5 times target_r."""
    target_r: Annotated[int, Bounds(ge=1)] | None = None
    """Mean rank of the sites at the end; None: two thirds of r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which stays when components go; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1); the paper's is 0.1."""
    start_ratio: Annotated[float, Bounds(ge=0, lt=1)] = 0.15
    """Share of the run before the first component goes, in [0, 1)."""
    end_ratio: Annotated[float, Bounds(ge=0, lt=1)] = 0.5
    """Share of the run after the last component went, in [0, 1); the two leave a middle."""
    interval: Annotated[int, Bounds(ge=1)] | None = None
    """Steps between two prunings; None: an eightieth of the run, at least 1, at most 100."""
    beta: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """What remains of a component's mean score at each step, in [0, 1)."""
    eta: Annotated[float, Bounds(ge=0)] = 0.1
    """Weight of the variance penalty (DEM); 0: none. The paper's lie from 0.1 to 0.5."""

    def __post_init__(self):
        super().__post_init__()
        ranking.check_target_rank(self)
        if self.start_ratio + self.end_ratio >= 1:
            raise ConfigError(
                f"{self.name}.start_ratio {self.start_ratio} and end_ratio {self.end_ratio} leave "
                "no part of the run to prune in.",
                fix="let their sum be less than 1",
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
        self.target = method.target_r or ranking.two_thirds(method.r)
        self.a = nn.Parameter(torch.empty(method.r, site.in_features))
        self.c = nn.Parameter(torch.zeros(method.r))
        self.b = nn.Parameter(torch.empty(site.out_features, method.r))
        nn.init.kaiming_uniform_(self.a)
        nn.init.kaiming_uniform_(self.b)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.c, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = ranking.remaining(self.a, self.c, self.b)
        return a, self.scale * b

    def shares(self) -> Tensor:
        """The size of each component over that of the site's whole update: (R,).

        ||B diag(c) A||^2 = c^T ((B^T B) * (A A^T)) c: no (O, I) matrix is made.
        """
        sizes = self.c.abs() * self.b.norm(dim=0) * self.a.norm(dim=1)
        square = self.c @ ((self.b.T @ self.b) * (self.a @ self.a.T)) @ self.c
        return sizes / (square.clamp_min(0).sqrt() + EPS)


class Pruning(ranking.Ranked):
    """Counts steps p from the first pruning on, as the authors' code: negative before it.

    The last pruning is at p = last; the scores end with it, and the penalty after it.
    """

    def __init__(self, method: DoraDynamic, adapters: Mapping[str, DoraDynamicAdapter], total: int):
        super().__init__(adapters, "c")
        self.method = method
        self.wait = round(total * method.start_ratio, 6)
        middle = total * (1 - method.start_ratio - method.end_ratio)
        self.last = int(round(middle, 6))  # 350, not 349.99...
        self.interval = method.interval or min(100, max(1, total // 80))
        self.scores = {site: torch.zeros_like(c.detach()) for site, c in self.vectors.items()}

    def since(self, t: int) -> int:
        """p at step t."""
        return int(t - self.wait)

    def count(self, t: int) -> int:
        """How many components the lowest are at step t."""
        share = min(max(self.since(t), 0) / self.last, 1.0) if self.last else 1.0
        return int((sum(self.most.values()) - self.target) * share**3)

    def penalty(self, t: int) -> Tensor | None:
        if not self.method.eta or self.since(t) > self.last:
            return None
        rows = [m for a in self.adapters.values() for m in (a.a, a.b.T) if m.shape[1] > 1]
        sums = [m.var(1).sum() for m in rows]
        total = torch.stack([s.to(sums[0].device) for s in sums]).sum()
        return self.method.eta * total / (2 * sum(self.most.values()))

    @torch.no_grad()
    def after_step(self, t: int) -> None:
        p, beta = self.since(t), self.method.beta
        if p <= self.last:
            for site, score in self.scores.items():
                score.mul_(beta).add_(self.adapters[site].shares(), alpha=1 - beta)
        if self.target == sum(self.most.values()):
            return
        due = p == self.last or (0 <= p < self.last and p % self.interval == 0)
        if due or (p > self.last and not self.out):
            self.out = ranking.lowest(self.scores, max(self.count(t), 1))
        if due or p > self.last:
            self.take_out()

    def state(self) -> dict[str, Tensor]:
        return {f"{site}.c": score for site, score in self.scores.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for site, score in self.scores.items():
            score.copy_(state[f"{site}.c"])
        self.out = {}

    def facts(self) -> dict[str, Any]:
        first, last = max(1, math.floor(self.wait)), math.ceil(self.wait + self.last)
        return super().facts() | {"ranks_change_from": first, "ranks_stay_from": last}
