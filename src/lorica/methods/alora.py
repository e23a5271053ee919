"""ALoRA: LoRA whose ranks move during training to the layers that need them most.

    y = W x + s B diag(g) A x,  with gates g in {0, 1}^R that the schedule sets

Liu et al., "ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models", 2024,
arXiv:2403.16187, algorithm 1. The scale is s = alpha / r throughout. In each round every active
rank is scored by ablation on a fixed batch (AB-LoRA). With S = -loss, the score is S(this rank
alone) - S(all but this rank). (The paper adds S(all), which is the same for every rank.) The
ranks with the lowest scores are pruned, as many as there are sites; the sites that lost none get
them. The total rank never changes. A round costs two forward passes over the batch for each
active rank: 3,584 passes for 224 layers of r = 8.

Unverified: how the paper initializes an added rank (the passage is garbled). Here it starts as in
LoRA, which does not change the output.

Differences from the paper: each site holds r_max ranks from the start. An inactive rank is zero,
so that neither its gradient nor weight decay moves it. The optimizer state of a site that gains
ranks starts anew. If the other sites have no room for all pruned ranks, fewer move. If the paper's
epochs do not fit into the run, or have fewer than 4 steps, the rounds lie in the first half of it.

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

Scores = Mapping[str, Mapping[int, float]]  # {site: {index of an active rank: score}}


@dataclass(frozen=True, kw_only=True)
class Alora(Method, name="alora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2403.16187"
    count: ClassVar[str] = "(r_max or 2 * r) * (I + O)"
    r: Annotated[int, Bounds(ge=1)] = 8
    """Initial rank of every layer, and the average rank throughout."""
    r_max: Annotated[int, Bounds(ge=1)] | None = None
    """Largest rank that a layer may reach; None: 2 r."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale alpha / r, which does not change with the ranks; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    rounds: Annotated[int, Bounds(ge=1)] = 8
    """Number of rounds, in each of which ranks move once."""
    first_round: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps before the first round; None: an epoch, or fewer in a short run."""
    round_every: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps between rounds; None: a quarter epoch, or fewer in a short run."""

    def __post_init__(self):
        super().__post_init__()
        if self.r_max is not None and self.r_max < self.r:
            raise setting_error(self, "r_max", f"at least r, {self.r}")

    def build(self, site: Site, shared: Any) -> "AloraAdapter":
        return AloraAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> "Allocation":
        first, every = epoch, max(1, epoch // 4)
        if epoch < 4 or first + self.rounds * every > total:
            interval = total / (2 * (4 + self.rounds))
            first, every = max(1, int(4 * interval)), max(1, int(interval))
        first, every = self.first_round or first, self.round_every or every
        if (needed := first + self.rounds * every) > total:
            raise ConfigError(
                f"{self.rounds} rounds of alora, every {every} steps after {first}, do not "
                f"fit into {total} steps.",
                steps_needed=needed,
                fix="train longer, or lower alora.rounds, first_round or round_every",
            )
        return Allocation(adapters, first, every, self.rounds)


class AloraAdapter(Adapter):
    g: Tensor

    def __init__(self, site: Site, method: Alora):
        super().__init__()
        self.scale, self.p = (method.alpha or 2 * method.r) / method.r, method.dropout
        r_max = method.r_max or 2 * method.r
        self.a = nn.Parameter(torch.zeros(r_max, site.in_features))
        self.b = nn.Parameter(torch.zeros(site.out_features, r_max))
        self.register_buffer("g", torch.zeros(r_max))
        self.grow(method.r)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        dropout = self.p if self.training else 0.0
        return low_rank(x, y, self.a, self.b * self.g, self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.scale * self.b * self.g

    @torch.no_grad()
    def grow(self, n: int, generator: torch.Generator | None = None) -> None:
        """Activate n more ranks, initialized as in LoRA; the output does not change. In place."""
        new, bound = (self.g == 0).nonzero().flatten()[:n], 1 / math.sqrt(self.a.shape[1])
        start = torch.empty(len(new), self.a.shape[1]).uniform_(-bound, bound, generator=generator)
        self.a[new] = start.to(self.a)
        self.g[new] = 1

    @torch.no_grad()
    def zero_inactive(self) -> None:
        """Set inactive ranks to zero, which the optimizer's momentum may have moved. In place."""
        self.a.mul_(self.g.unsqueeze(1))
        self.b.mul_(self.g)


class Allocation(Schedule):
    """Moves ranks in rounds. New rows of A are drawn from the step number, so that all processes
    and resumed runs draw the same.

    gained: tensors of the sites that gained ranks in this step.
    """

    def __init__(self, adapters: Mapping[str, AloraAdapter], first: int, every: int, rounds: int):
        self.adapters = adapters
        self.rounds = range(first, first + every * rounds, every)
        self.gained: list[str] = []

    def probe(self) -> float:  # type: ignore[override]
        raise ConfigError(
            "alora scores its ranks by the loss on a fixed batch, and no batch is set.",
            fix="train with lorica.train, or set driver.schedule.probe",
        )

    def after_step(self, t: int) -> None:
        for adapter in self.adapters.values():
            adapter.zero_inactive()
        self.gained = []
        if t in self.rounds:
            self.move_ranks(self.scores(), torch.Generator().manual_seed(t))

    def scores(self) -> Scores:
        """AB-LoRA: the loss without a rank, minus the loss with it alone; the lowest are pruned."""
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

    def move_ranks(self, scores: Scores, generator: torch.Generator) -> None:
        """Prune the ranks with the lowest scores, and activate as many at other sites."""
        room = {site: int((adapter.g == 0).sum()) for site, adapter in self.adapters.items()}
        pruned, gains = reallocated(scores, room)
        for site, i in pruned:
            self.adapters[site].g[i] = 0
        for site, adapter in self.adapters.items():
            adapter.zero_inactive()
            adapter.grow(gains.get(site, 0), generator)
        self.gained = [f"{site}.{key}" for site in gains for key in ("a", "b")]

    def fresh(self) -> list[str]:
        return self.gained

    def ranks(self) -> dict[str, int]:
        return {site: int(adapter.g.sum()) for site, adapter in self.adapters.items()}


def reallocated(
    scores: Scores, room: Mapping[str, int]
) -> tuple[list[tuple[str, int]], Mapping[str, int]]:
    """The (site, rank) to prune, and how many ranks each of the other sites gains.

    room: how many ranks each site can gain.
    """
    flat = [(score, site, i) for site, own in scores.items() for i, score in own.items()]
    lowest = [(site, i) for _, site, i in sorted(flat, key=lambda item: item[0])]
    for n in range(len(scores), 0, -1):
        losing = {site for site, _ in lowest[:n]}
        others = {site: own.values() for site, own in scores.items() if site not in losing}
        if sum(room[site] for site in others) >= n:
            means = {s: sum(own) / len(own) if own else -math.inf for s, own in others.items()}
            return lowest[:n], distributed(n, means, room)
    return [], {}


def distributed(n: int, means: Mapping[str, float], room: Mapping[str, int]) -> Mapping[str, int]:
    """n ranks, dealt one at a time to the sites that have room, the highest mean score first."""
    order = sorted(means, key=lambda site: -means[site])
    turns = sorted((turn, i) for i, site in enumerate(order) for turn in range(room[site]))
    return Counter(order[i] for _, i in turns[:n])
