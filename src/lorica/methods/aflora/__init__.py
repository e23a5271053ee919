"""AFLoRA: LoRA with two trained scaling vectors, whose A and B freeze as soon as they settle.

    y = W x + v * (B (d * (A x)))

Liu et al., "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning
of Large Models", 2024, arXiv:2403.13269; details from the authors' code. A and B start as
U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), d (the paper's lambda_d) as d_initial and v (lambda_b) as
zero, so that the adapted model starts as the base. There is no alpha. d and v never freeze.

- Budget: the fraction of the elements of A and B that should still train falls with
  (1 - (t - tinit) / (T - tinit - tfinal))^3 at step t of T.
- Score of an element: every deltaT steps its mean |gradient| enters two moving averages, one of
  itself and one of its distance from the first. The score is their product.
- The threshold is the k-th lowest score of all elements that still train, k = (1 - fraction) of
  their number. A matrix whose mean score is below it freezes for good. A few scores are far above
  the rest, so that means are high: little freezes at first, and then much at once.

Differences from the authors' code: gradients are those of whole optimizer steps, after clipping;
the threshold is taken from about a million evenly spaced scores if there are more; after step
T - tfinal all of A and B is frozen, matrices of equal scores included. Each element that still
trains needs three more floats of memory.

    I  in_features   O  out_features   R  r
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds, setting_error
from lorica.core.ranking import Phases
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank
from lorica.methods.aflora.schedule import Freezing


@dataclass(frozen=True, kw_only=True)
class Aflora(Method, name="aflora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2403.13269"
    count: ClassVar[str] = "(I != O or not freeze_square) * r * (I + O) + r + O"
    rates: ClassVar[Rates] = (0.05, 0.003, 5.0)
    rate_source: ClassVar[str] = "Liu et al. 2024: 1e-2 at hidden size 768"
    r: Annotated[int, Bounds(ge=1)] = 4
    """Rank. Parameters per layer: r * (I + O) + r + O, of which r + O train to the end."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    d_initial: float = 0.1
    """Initial value of every element of d; not 0."""
    freeze_square: bool = False
    """Never train A and B of square layers (I = O), as in the authors' runs on GLUE."""
    tinit: Annotated[int, Bounds(ge=0)] | None = None
    """Optimizer steps before anything freezes; None: an epoch, at most a tenth of the run."""
    tfinal: Annotated[int, Bounds(ge=0)] | None = None
    """Optimizer steps at the end in which A and B are frozen; None: 0.7 of the run."""
    deltaT: Annotated[int, Bounds(ge=1)] | None = None
    """Optimizer steps from one check to the next; None: 10, or a third of the freezing phase if it
    is shorter."""
    beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.85
    """Decay of the moving average of |gradient|, in [0, 1)."""
    beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """Decay of the moving average of its distance from that average, in [0, 1)."""

    def __post_init__(self):
        super().__post_init__()
        if self.d_initial == 0:
            raise setting_error(self, "d_initial", "a number other than 0", fix="try 0.1")

    def build(self, site: Site, shared: Any) -> "AfloraAdapter":
        return AfloraAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Freezing:
        tfinal = int(0.7 * total) if self.tfinal is None else self.tfinal
        start = min(epoch, total // 10) if self.tinit is None else self.tinit
        end = total - tfinal
        every = self.deltaT or min(10, max(1, (end - start) // 3))
        if start >= end or every > end:
            raise ConfigError(
                f"aflora's phases do not fit into {total} steps: A and B train for {end}.",
                tinit=start,
                tfinal=tfinal,
                deltaT=every,
                fix="lower tfinal, tinit or deltaT, or train longer",
            )
        return Freezing(adapters, total, Phases(start, end, every), (self.beta1, self.beta2))


class AfloraAdapter(Adapter):
    def __init__(self, site: Site, method: Aflora):
        super().__init__()
        self.p = method.dropout
        frozen = method.freeze_square and site.in_features == site.out_features
        store = nn.Buffer if frozen else nn.Parameter
        self.a = store(nn.init.kaiming_uniform_(torch.empty(method.r, site.in_features)))
        self.b = store(nn.init.kaiming_uniform_(torch.empty(site.out_features, method.r)))
        self.d = nn.Parameter(torch.full((method.r,), float(method.d_initial)))
        self.v = nn.Parameter(torch.zeros(site.out_features))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return low_rank(x, y, *self.factors(), dropout=self.p if self.training else 0.0)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.d.unsqueeze(1) * self.a, self.v.unsqueeze(1) * self.b
