"""AFLoRA: two trained scales around A and B, which freeze, matrix by matrix, as they settle.

    y = W x + v * (B (d * (A x)))

Liu et al., "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient
Fine-Tuning of Large Models", 2024, arXiv:2403.13269; details from the authors' code. A and B
start as U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), d at d_initial and v at zero; there is no
alpha. d and v (lambda_d and lambda_b of the paper) are trained to the end.

The share of numbers in A and B that should still train falls as (1 - (t - tinit) / (T - tinit
- tfinal))^3. Every deltaT steps a number's mean |gradient| over them goes into two averages, of
itself and of its distance from the new average; their product is its score. The k-th lowest
score is the threshold, k = (1 - share) of all that still train, and a matrix whose mean score
is below it freezes for good. A few scores are far above the rest, so a mean lies high: little
freezes at first, and then much at once.

Ours: gradients are those of whole optimizer steps, clipped; the threshold is that of about a
million scores, evenly spaced, where there are more; after step T - tfinal all of A and B is
frozen, also a matrix of equal scores. Three numbers are kept for each that still trains.

    I  in_features   O  out_features   R  r
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds, setting_error
from lorica.core.schedule import Schedule
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank

SAMPLE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Aflora(Method, name="aflora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2403.13269"
    count: ClassVar[str] = "(I != O or not freeze_square) * r * (I + O) + r + O"
    rates: ClassVar[Rates] = (0.05, 0.003, 5.0)
    rate_source: ClassVar[str] = "Liu et al. 2024: 1e-2 at hidden size 768"
    r: Annotated[int, Bounds(ge=1)] = 4
    """Rows of A. Parameters per layer: r * (I + O) + r + O, of which r + O train to the end."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    d_initial: float = 0.1
    """Where d starts; not 0."""
    freeze_square: bool = False
    """A and B of layers with I = O never train, as in the authors' runs on GLUE."""
    tinit: Annotated[int, Bounds(ge=0)] | None = None
    """Steps before anything freezes; None: an epoch, but at most a tenth of the run."""
    tfinal: Annotated[int, Bounds(ge=0)] | None = None
    """Steps at the end in which A and B are frozen; None: 0.7 of the run."""
    deltaT: Annotated[int, Bounds(ge=1)] | None = None
    """Steps from one check to the next; None: 10, or a third of the freezing phase if shorter."""
    beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.85
    """How slowly the size of a gradient is averaged, in [0, 1)."""
    beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """How slowly its distance from the average is averaged, in [0, 1)."""

    def __post_init__(self):
        super().__post_init__()
        if self.d_initial == 0:
            raise setting_error(self, "d_initial", "a number other than 0", fix="try 0.1")

    def build(self, site: Site, shared: Any) -> "AfloraAdapter":
        return AfloraAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Adapter], total: int, epoch: int) -> "Freezing":
        return Freezing(self, adapters, total, epoch)


class AfloraAdapter(Adapter):
    def __init__(self, site: Site, method: Aflora):
        super().__init__()
        self.p = method.dropout
        fixed = method.freeze_square and site.in_features == site.out_features
        kind = nn.Buffer if fixed else nn.Parameter
        self.a = kind(nn.init.kaiming_uniform_(torch.empty(method.r, site.in_features)))
        self.b = kind(nn.init.kaiming_uniform_(torch.empty(site.out_features, method.r)))
        self.d = nn.Parameter(torch.full((method.r,), method.d_initial))
        self.v = nn.Parameter(torch.zeros(site.out_features))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return low_rank(x, y, *self.factors(), dropout=self.p if self.training else 0.0)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.d.unsqueeze(1) * self.a, self.v.unsqueeze(1) * self.b


class Freezing(Schedule):
    """Freezes A and B, each as a whole, in steps first < t <= room; after them nothing is left."""

    def __init__(self, method: Aflora, adapters: Mapping[str, Adapter], total: int, epoch: int):
        last = int(0.7 * total) if method.tfinal is None else method.tfinal
        room = total - last  # steps in which A and B may train
        first = min(epoch, total // 10) if method.tinit is None else method.tinit
        every = method.deltaT or min(10, max(1, (room - first) // 3))
        if first >= room or every > room:
            raise ConfigError(
                f"aflora's phases do not fit into {total} steps: A and B train for {room}.",
                tinit=first,
                tfinal=last,
                deltaT=every,
                fix="lower tfinal, tinit or deltaT, or train longer",
            )
        self.method, self.adapters, self.total = method, adapters, total
        self.first, self.room, self.every = first, room, every
        self.matrices = {
            f"{site}.{key}": parameter
            for site, adapter in adapters.items()
            for key, parameter in adapter.named_parameters()
            if key in ("a", "b")
        }
        self.frozen_at = dict.fromkeys(self.matrices, 0)  # step; 0: it trains
        self.seen: dict[str, Tensor] = {}

    def share(self, t: int) -> float:
        """The share of A and B that should still train in step t."""
        return (1 - min(max((t - self.first) / (self.room - self.first), 0), 1)) ** 3

    @torch.no_grad()
    def before_step(self, t: int) -> None:
        frozen = training = [name for name, step in self.frozen_at.items() if not step]
        window_ends = t % self.every == 0
        for name in training:
            self._look(name, window_ends)
        if t <= self.room:
            scores = {name: self.seen[name][1:].prod(0) for name in training if window_ends}
            frozen = low(scores, self.share(t))
        self.frozen_at |= dict.fromkeys(frozen, t)
        self._hold()

    def _seen(self, name: str) -> Tensor:
        """(3, ...): the mean |gradient| of this window so far, its average, and its spread."""
        if name not in self.seen:
            self.seen[name] = torch.zeros_like(self.matrices[name].detach().expand(3, -1, -1))
        return self.seen[name]

    def _look(self, name: str, window_ends: bool) -> None:
        window, level, spread = self._seen(name)
        if (grad := self.matrices[name].grad) is not None:
            window.add_(grad.abs(), alpha=1 / self.every)
        if window_ends:
            level.lerp_(window, 1 - self.method.beta1)
            spread.lerp_((window - level).abs_(), 1 - self.method.beta2)
            window.zero_()

    def _hold(self) -> None:
        """What is frozen has no gradient, so that the optimizer leaves it alone, decay and all."""
        for name in (name for name, step in self.frozen_at.items() if step):
            site, _, key = name.rpartition(".")
            self.adapters[site].frozen = tuple(sorted({*self.adapters[site].frozen, key}))
            self.matrices[name].requires_grad_(False).grad = None
            self.seen.pop(name, None)

    def state(self) -> dict[str, Tensor]:
        seen = {n: self._seen(n).clone() for n, step in self.frozen_at.items() if not step}
        return {"frozen_at": torch.tensor([*self.frozen_at.values()], dtype=torch.int64), **seen}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.frozen_at = dict(zip(self.matrices, state["frozen_at"].tolist(), strict=True))
        for name, step in self.frozen_at.items():
            if not step:
                self._seen(name).copy_(state[name])
        self._hold()

    def facts(self) -> dict[str, Any]:
        always = sum(len(p) for a in self.adapters.values() for p in (a.d, a.v))  # type: ignore[arg-type]
        steps = {name: step - 1 if step else self.total for name, step in self.frozen_at.items()}
        trained = sum(steps[name] * p.numel() for name, p in self.matrices.items())
        froze = Counter(step for step in self.frozen_at.values() if step)
        return {
            "matrices": len(self.matrices),
            "frozen": froze.total(),
            "frozen_at_step": dict(sorted(froze.items())),
            "average_trained": round(always + trained / self.total, 1),
        }


def low(scores: Mapping[str, Tensor], share: float) -> list[str]:
    """The matrices whose mean score is below the k-th lowest score of all, k = (1 - share) N."""
    step = sum(s.numel() for s in scores.values()) // SAMPLE | 1  # odd: it meets every column
    some = torch.cat([torch.empty(0), *(s.flatten()[::step].cpu() for s in scores.values())])
    if not (k := int(len(some) * (1 - share))):
        return []
    threshold = some.kthvalue(k).values
    return [name for name, s in scores.items() if s.mean().cpu() < threshold]
