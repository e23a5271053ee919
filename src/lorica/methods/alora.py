"""ALoRA: LoRA whose ranks move, during training, to the layers that miss them most.

    y = W x + s B diag(g) A x,  g in {0, 1}^R set by the schedule, s = alpha / r throughout

Liu et al., "ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models",
2024, arXiv:2403.16187, algorithm 1. In each round every live rank is scored by ablation on a
fixed batch (AB-LoRA), with S = -loss: S(this rank alone) - S(all but this rank). The paper
adds S(all), the same number for every rank. As many ranks as there are sites, the lowest, are
pruned; the sites that lost none share them. The sum of ranks never changes. A round costs two
forward passes over the batch for each live rank: 3,584 for 224 layers of r = 8.

Unverified: how the paper starts an added rank (the passage is garbled); here as LoRA starts,
which leaves the output as it is. Ours: r_max rows per site are laid out from the start, and a
rank out of use is zeros, so that neither its gradient nor weight decay moves it; the optimizer
state of a site that gains ranks starts anew; where the untouched sites lack room, fewer move;
where the paper's epochs do not fit, or have under 4 steps, the rounds lie in half of the run.

    I  in_features   O  out_features   R  r_max
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method
from lorica.core.bounds import Bounds, setting_error
from lorica.core.schedule import Schedule
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank

Scores = Mapping[str, Mapping[int, float]]  # of the live ranks, by site


@dataclass(frozen=True, kw_only=True)
class Alora(Method, name="alora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2403.16187"
    count: ClassVar[str] = "(r_max or 2 * r) * (I + O)"
    r: Annotated[int, Bounds(ge=1)] = 8
    """Ranks of each layer at the start, and of all layers on average for good."""
    r_max: Annotated[int, Bounds(ge=1)] | None = None
    """Most ranks that one layer can come to; None: 2 r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which stays when ranks move; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    rounds: Annotated[int, Bounds(ge=1)] = 8
    """How often ranks move."""
    first_round: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps before the first round; None: an epoch, less if the run is too short."""
    round_every: Annotated[int, Bounds(ge=1)] | None = None
    """Steps from a round to the next; None: a quarter epoch, less if the run is too short."""

    def __post_init__(self):
        super().__post_init__()
        if self.r_max is not None and self.r_max < self.r:
            raise setting_error(self, "r_max", f"at least r, {self.r}")

    def build(self, site: Site, shared: Any) -> "AloraAdapter":
        return AloraAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Adapter], total: int, epoch: int) -> "Allocation":
        first, every = epoch, max(1, epoch // 4)
        if epoch < 4 or first + self.rounds * every > total:
            share = total / (2 * (4 + self.rounds))
            first, every = max(1, int(4 * share)), max(1, int(share))
        first, every = self.first_round or first, self.round_every or every
        if (need := first + self.rounds * every) > total:
            raise ConfigError(
                f"{self.rounds} rounds of alora, every {every} after {first}, do not fit.",
                steps=f"{total}, and {need} are needed",
                fix="train longer, or lower alora.rounds, first_round or round_every",
            )
        return Allocation(adapters, first, every, self.rounds)


class AloraAdapter(Adapter):
    g: Tensor

    def __init__(self, site: Site, method: Alora):
        super().__init__()
        self.scale, self.p = (method.alpha or 2 * method.r) / method.r, method.dropout
        most = method.r_max or 2 * method.r
        self.a = nn.Parameter(torch.zeros(most, site.in_features))
        self.b = nn.Parameter(torch.zeros(site.out_features, most))
        self.register_buffer("g", torch.zeros(most))
        self.grow(method.r)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.g, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.scale * self.b * self.g

    @torch.no_grad()
    def grow(self, n: int, generator: torch.Generator | None = None) -> None:
        """Take n more ranks into use, with LoRA's start; the output stays as it is."""
        new, bound = (self.g == 0).nonzero().flatten()[:n], 1 / math.sqrt(self.a.shape[1])
        start = torch.empty(len(new), self.a.shape[1]).uniform_(-bound, bound, generator=generator)
        self.a[new] = start.to(self.a)
        self.g[new] = 1

    @torch.no_grad()
    def settle(self) -> None:
        """Ranks that are out of use are zeros, whatever an optimizer's momentum made of them."""
        self.a.mul_(self.g.unsqueeze(1))
        self.b.mul_(self.g)


class Allocation(Schedule):
    """New rows of A follow from the step: all processes, and a resumed run, draw the same."""

    def __init__(self, adapters: Mapping[str, Adapter], first: int, every: int, rounds: int):
        self.adapters: Mapping[str, AloraAdapter] = adapters  # type: ignore[assignment]
        self.rounds = range(first, first + every * rounds, every)
        self.grown: list[str] = []

    def probe(self) -> float:  # type: ignore[override]
        raise ConfigError(
            "alora scores its ranks by the loss on a batch, and was given none.",
            fix="train with lorica.train, or set driver.schedule.probe",
        )

    def after_step(self, t: int) -> None:
        for adapter in self.adapters.values():
            adapter.settle()
        self.grown = []
        if t in self.rounds:
            self.move(self.scores(), torch.Generator().manual_seed(t))

    def scores(self) -> Scores:
        """AB-LoRA: the loss without a rank, less the loss with it alone. Higher: keep it."""
        gates = {site: adapter.g.clone() for site, adapter in self.adapters.items()}
        none = {site: torch.zeros_like(gate) for site, gate in gates.items()}
        try:
            return {
                site: {
                    i: self._loss(gates, site, i, 0) - self._loss(none, site, i, 1)
                    for i in gate.nonzero().flatten().tolist()
                }
                for site, gate in gates.items()
            }
        finally:
            for site, adapter in self.adapters.items():
                adapter.g.copy_(gates[site])

    def _loss(self, gates: Mapping[str, Tensor], site: str, i: int, on: int) -> float:
        for name, adapter in self.adapters.items():
            adapter.g.copy_(gates[name])
        self.adapters[site].g[i] = on
        return self.probe()

    def move(self, scores: Scores, generator: torch.Generator) -> None:
        """Prune the lowest ranks, and give as many to other sites."""
        room = {site: int((adapter.g == 0).sum()) for site, adapter in self.adapters.items()}
        pruned, gains = reallocated(scores, room)
        for site, i in pruned:
            self.adapters[site].g[i] = 0
        for site, adapter in self.adapters.items():
            adapter.settle()
            adapter.grow(gains.get(site, 0), generator)
        self.grown = [f"{site}.{key}" for site in gains for key in ("a", "b")]

    def fresh(self) -> list[str]:
        return self.grown

    def ranks(self) -> dict[str, int]:
        return {site: int(adapter.g.sum()) for site, adapter in self.adapters.items()}


def reallocated(scores: Scores, room: Mapping[str, int]) -> tuple[list, Mapping[str, int]]:
    """Which (site, rank) go, and how many each untouched site gains of the `room` that it has."""
    every = [(score, site, i) for site, own in scores.items() for i, score in own.items()]
    lowest = [(site, i) for _, site, i in sorted(every, key=lambda found: found[0])]
    for n in range(len(scores), 0, -1):
        lost = {site for site, _ in lowest[:n]}
        kept = {site: own.values() for site, own in scores.items() if site not in lost}
        if sum(room[site] for site in kept) >= n:
            means = {site: sum(own) / len(own) if own else -math.inf for site, own in kept.items()}
            return lowest[:n], dealt(n, means, room)
    return [], {}


def dealt(n: int, means: Mapping[str, float], room: Mapping[str, int]) -> Mapping[str, int]:
    """n ranks, one after the other to each site, the highest mean first, while it has room."""
    order = sorted(means, key=lambda site: -means[site])
    turns = sorted((turn, i) for i, site in enumerate(order) for turn in range(room[site]))
    return Counter(order[i] for _, i in turns[:n])
