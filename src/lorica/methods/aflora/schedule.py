"""AFLoRA's schedule: freeze A and B, matrix by matrix, as their scores fall."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorica.core.ranking import Phases
from lorica.core.schedule import Schedule

MAX_SCORES = 1 << 20  # how many scores the threshold is taken from


class Freezing(Schedule):
    """Freezes A and B, each as a whole, at steps start < t <= end; all of them are frozen after."""

    def __init__(
        self, adapters: Mapping[str, Any], total: int, phases: Phases, betas: tuple[float, float]
    ):
        self.adapters, self.total, self.phases, self.betas = adapters, total, phases, betas
        self.matrices = {
            f"{site}.{key}": parameter
            for site, adapter in adapters.items()
            for key, parameter in adapter.named_parameters()
            if key in ("a", "b")
        }
        self.frozen_at = dict.fromkeys(self.matrices, 0)
        """The step at which each matrix froze; 0: it still trains."""
        self._averages: dict[str, Tensor] = {}

    def trained_fraction(self, t: int) -> float:
        """The fraction of the elements of A and B that should still train in step t."""
        return (1 - self.phases.progress(t)) ** 3

    @torch.no_grad()
    def before_step(self, t: int) -> None:
        training = [name for name, step in self.frozen_at.items() if not step]
        window_ends = t % self.phases.every == 0
        for name in training:
            self._update_averages(name, window_ends)
        to_freeze = training
        if t <= self.phases.end:
            scores = {name: self.averages(name)[1:].prod(0) for name in training if window_ends}
            to_freeze = below_threshold(scores, self.trained_fraction(t))
        self.frozen_at |= dict.fromkeys(to_freeze, t)
        self._freeze()

    def averages(self, name: str) -> Tensor:
        """(3, ...): the mean |gradient| of this window so far, and the two moving averages."""
        if name not in self._averages:
            self._averages[name] = torch.zeros_like(self.matrices[name].detach().expand(3, -1, -1))
        return self._averages[name]

    def _update_averages(self, name: str, window_ends: bool) -> None:
        window, mean, distance = self.averages(name)
        if (grad := self.matrices[name].grad) is not None:
            window.add_(grad.abs(), alpha=1 / self.phases.every)
        if window_ends:
            mean.lerp_(window, 1 - self.betas[0])
            distance.lerp_((window - mean).abs_(), 1 - self.betas[1])
            window.zero_()

    def _freeze(self) -> None:
        """Frozen matrices get no gradient, so that the optimizer neither moves nor decays them."""
        for name in (name for name, step in self.frozen_at.items() if step):
            site, _, key = name.rpartition(".")
            self.adapters[site].frozen = tuple(sorted({*self.adapters[site].frozen, key}))
            self.matrices[name].requires_grad_(False).grad = None
            self._averages.pop(name, None)

    def state(self) -> dict[str, Tensor]:
        training = (name for name, step in self.frozen_at.items() if not step)
        frozen_at = torch.tensor([*self.frozen_at.values()], dtype=torch.int64)
        return {"frozen_at": frozen_at, **{name: self.averages(name).clone() for name in training}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.frozen_at = dict(zip(self.matrices, state["frozen_at"].tolist(), strict=True))
        for name, step in self.frozen_at.items():
            if not step:
                self.averages(name).copy_(state[name])
        self._freeze()

    def facts(self) -> dict[str, Any]:
        always = sum(len(p) for a in self.adapters.values() for p in (a.d, a.v))
        steps = {name: step - 1 if step else self.total for name, step in self.frozen_at.items()}
        trained = sum(steps[name] * p.numel() for name, p in self.matrices.items())
        frozen = Counter(step for step in self.frozen_at.values() if step)
        return {
            "matrices": len(self.matrices),
            "frozen": frozen.total(),
            "frozen_at_step": dict(sorted(frozen.items())),
            "average_trained": round(always + trained / self.total, 1),
        }


def below_threshold(scores: Mapping[str, Tensor], fraction: float) -> list[str]:
    """The matrices whose mean score is below the k-th lowest of all N, k = (1 - fraction) N."""
    stride = sum(s.numel() for s in scores.values()) // MAX_SCORES | 1  # odd: reaches every column
    sample = torch.cat([torch.empty(0), *(s.flatten()[::stride].cpu() for s in scores.values())])
    if not (k := int(len(sample) * (1 - fraction))):
        return []
    threshold = sample.kthvalue(k).values
    return [name for name, s in scores.items() if s.mean().cpu() < threshold]
