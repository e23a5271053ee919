"""AdaLoRA: y = W x + s B diag(e) A x, and the least important components of B diag(e) A go.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023,
arXiv:2303.10512. Component i is a row of A, e_i and a column of B. A and B start as N(0, 0.02^2), e
at zero; a penalty keeps the rows of A and the columns of B orthonormal. As in the authors' code and
PEFT's, s = alpha / (r + 1e-5) with the start rank r. A component scores the importance (section
3.2) of e_i plus the mean ones of its row and its column, with weights after the step and gradients
before it, as in their code. The lowest over all sites get e_i = 0, down to a total rank that falls
with (1 - (t - tinit) / (T - tfinal - tinit))^3; equation 14 prints this with a slip. Before step
T - tfinal they may come back; from it on they stay out.

mode="increase" grows instead, after IncreLoRA: Zhang et al., 2023, arXiv:2308.12043. Sites
start with rank 1; the next component of each trains ahead at e_i = 1e-5. Our own, because
their code needs the gradient of W and makes new tensors: a site scores the importances of its
e; the total grows linearly; s stays alpha / (r + 1e-5), and r is the most of a site.
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

AHEAD = 1e-5  # e of the component that trains ahead of its use


@dataclass(frozen=True, kw_only=True)
class Adalora(Method, name="adalora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    count: ClassVar[str] = "r * (I + O + 1)"
    rates: ClassVar[Rates] = (0.015, 0.0005, 3.0)
    rate_source: ClassVar[str] = "Zhang et al. 2023, table 8 (MNLI)"
    r: Annotated[int, Bounds(ge=1)] = 12
    """Rank of every site at the start; mode=increase: the most that a site may reach."""
    target_r: Annotated[int, Bounds(ge=1)] | None = None
    """Mean rank of the sites at the end; None: two thirds of r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which stays when ranks change; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    mode: Literal["decrease", "increase"] = "decrease"
    """decrease: prune from r to target_r. increase: grow from rank 1 to target_r (IncreLoRA)."""
    tinit: Annotated[int, Bounds(ge=0)] | None = None
    """Steps before the ranks change; None: a fifth of those before tfinal, a tenth of the run."""
    tfinal: Annotated[int, Bounds(ge=0)] | None = None
    """Steps at the end, with fixed ranks; None: half of those after tinit, or of the run."""
    deltaT: Annotated[int, Bounds(ge=1)] | None = None
    """Steps between two changes; None: a five-hundredth of the run, at least 1, at most 100."""
    beta1: Annotated[float, Bounds(gt=0, lt=1)] = 0.85
    """What remains of the mean sensitivity at each step, in (0, 1)."""
    beta2: Annotated[float, Bounds(gt=0, lt=1)] = 0.85
    """What remains of its mean uncertainty at each step, in (0, 1)."""
    orth_reg_weight: Annotated[float, Bounds(ge=0)] = 0.5
    """Weight of the penalty on rows of A and columns of B that are not orthonormal; 0: none."""
    orth_mode: Literal["frobenius_mean", "squared_sum"] = "frobenius_mean"
    """The mean of ||Q Q^T - 1|| over all A and B (the authors' code), or the sum of its squares
    (the paper)."""

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
        return (Decrease if self.mode == "decrease" else Increase)(self, adapters, total)


class AdaloraAdapter(Adapter):
    def __init__(self, site: Site, method: Adalora):
        super().__init__()
        self.scale, self.p = method.scale, method.dropout
        self.target = method.target_r or ranking.two_thirds(method.r)
        self.a = nn.Parameter(0.02 * torch.randn(method.r, site.in_features))
        self.e = nn.Parameter(torch.zeros(method.r))
        self.b = nn.Parameter(0.02 * torch.randn(site.out_features, method.r))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.e, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = ranking.remaining(self.a, self.e, self.b)
        return a, self.scale * b


class Decrease(ranking.Ranked):
    scored: ClassVar[tuple[str, ...]] = ("a", "e", "b")

    def __init__(self, method: Adalora, adapters: Mapping[str, AdaloraAdapter], total: int):
        super().__init__(adapters, "e")
        self.method = method
        self.phases = ranking.Phases.of(total, method.tinit, method.tfinal, method.deltaT)
        tensors = {f"{s}.{k}": getattr(a, k) for s, a in adapters.items() for k in self.scored}
        self.importance = ranking.Importance(tensors, method.beta1, method.beta2)

    def penalty(self, t: int) -> Tensor | None:
        if not (weight := self.method.orth_reg_weight):
            return None
        bases = (q for adapter in self.adapters.values() for q in (adapter.a, adapter.b.T))
        return weight * ranking.skewness(bases, self.method.orth_mode == "squared_sum")

    def budget(self, t: int) -> int:
        """The total rank after step t."""
        most = sum(self.most.values())
        return int((most - self.target) * (1 - self.phases.done(t)) ** 3 + self.target)

    def scores(self) -> dict[str, Tensor]:
        """Of the components: {site: (R,)}."""
        i = self.importance
        return {s: i[f"{s}.e"] + i[f"{s}.a"].mean(1) + i[f"{s}.b"].mean(0) for s in self.most}

    def hear(self, t: int) -> None:
        if t < self.phases.end or t == 1:  # in a run of a step or two, at least that one
            self.importance.take_in()

    def after_step(self, t: int) -> None:
        due, over = self.phases.due(t), t > self.phases.end
        self.hear(t)
        if due or (over and not self.out):
            self.out = ranking.lowest(self.scores(), sum(self.most.values()) - self.budget(t))
        if due or over:
            self.take_out()

    def state(self) -> dict[str, Tensor]:
        return dict(self.importance.averages)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.importance.load_state(state)
        self.out = {}

    def facts(self) -> dict[str, Any]:
        when = {"ranks_change_from": self.phases.start + 1, "ranks_stay_from": self.phases.end}
        return super().facts() | when


class Increase(Decrease):
    """The first components are in use, `rank` of a site; one more trains ahead; the rest is out."""

    scored = ("e",)

    def __init__(self, method: Adalora, adapters: Mapping[str, AdaloraAdapter], total: int):
        super().__init__(method, adapters, total)
        self.rank = dict.fromkeys(adapters, 1)

    def in_use(self) -> dict[str, Tensor]:
        rank = self.rank
        return {s: torch.arange(len(e), device=e.device) < rank[s] for s, e in self.vectors.items()}

    def budget(self, t: int) -> int:
        return int(len(self.rank) + (self.target - len(self.rank)) * self.phases.done(t))

    def after_step(self, t: int) -> None:
        self.hold(t)
        self.hear(t)
        if self.phases.due(t):
            scores = {s: float(self.importance[f"{s}.e"][:k].sum()) for s, k in self.rank.items()}
            more = self.budget(t) - sum(self.rank.values())
            self.rank = ranking.grown(self.rank, self.most, scores, more)
            self.hold(t)

    @torch.no_grad()
    def hold(self, t: int) -> None:
        """Put e of what is not in use to where it belongs. In place."""
        for site, e in self.vectors.items():
            rest = e[self.rank[site] :].zero_()
            rest[:1] = AHEAD if t < self.phases.end else 0

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"{s}.rank": torch.tensor(k) for s, k in self.rank.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self.rank = {site: int(state[f"{site}.rank"]) for site in self.rank}
