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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method
from lorica.core.bounds import Bounds, setting_error
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank
from lorica.methods.alora.schedule import Allocation


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

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Allocation:
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
