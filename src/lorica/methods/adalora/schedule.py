"""AdaLoRA's schedules: prune components to a budget, or grow them one at a time."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorica.core import ranking

WARM_UP = 1e-5  # e of the component that a site uses next, when ranks grow


class Decrease(ranking.RankSchedule):
    """Prunes from rank r to target_r."""

    scored: ClassVar[tuple[str, ...]] = ("a", "e", "b")
    """Parameters whose importance is tracked."""

    def __init__(
        self,
        adapters: Mapping[str, Any],
        phases: ranking.Phases,
        *,
        betas: tuple[float, float],
        penalty_weight: float,
        squared: bool,
    ):
        super().__init__(adapters, "e")
        self.phases, self.penalty_weight, self.squared = phases, penalty_weight, squared
        tensors = {
            f"{site}.{key}": adapter.get_parameter(key)
            for site, adapter in adapters.items()
            for key in self.scored
        }
        self.importance = ranking.Importance(tensors, *betas)

    def penalty(self, t: int) -> Tensor | None:
        if not self.penalty_weight:
            return None
        matrices = (q for adapter in self.adapters.values() for q in (adapter.a, adapter.b.T))
        return self.penalty_weight * ranking.orthonormality_loss(matrices, self.squared)

    def budget(self, t: int) -> int:
        """The total rank after step t."""
        start = sum(self.max_ranks.values())
        return int((start - self.target) * (1 - self.phases.progress(t)) ** 3 + self.target)

    def scores(self) -> dict[str, Tensor]:
        """The scores of all components: {site: (R,)}."""
        importance = self.importance
        return {
            site: importance[f"{site}.e"]
            + importance[f"{site}.a"].mean(1)
            + importance[f"{site}.b"].mean(0)
            for site in self.max_ranks
        }

    def update_importance(self, t: int) -> None:
        if t < self.phases.end or t == 1:  # step 1 always: the shortest runs need scores as well
            self.importance.update()

    def after_step(self, t: int) -> None:
        due, fixed = self.phases.is_due(t), t > self.phases.end
        self.update_importance(t)
        if due or (fixed and not self.pruned):
            n = sum(self.max_ranks.values()) - self.budget(t)
            self.pruned = ranking.lowest(self.scores(), n)
        if due or fixed:
            self.zero_pruned()

    def state(self) -> dict[str, Tensor]:
        return dict(self.importance.averages)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.importance.load_state(state)
        self.pruned = {}

    def facts(self) -> dict[str, Any]:
        return super().facts() | {
            "ranks_change_from": self.phases.start + 1,
            "ranks_stay_from": self.phases.end,
        }


class Increase(Decrease):
    """Grows from rank 1 to target_r.

    The first `rank` components of a site are active, the next one warms up, and all others are
    zero.
    """

    scored = ("e",)

    def __init__(self, adapters: Mapping[str, Any], phases: ranking.Phases, **settings: Any):
        super().__init__(adapters, phases, **settings)
        self.rank = dict.fromkeys(adapters, 1)

    def active(self) -> dict[str, Tensor]:
        return {
            site: torch.arange(len(e), device=e.device) < self.rank[site]
            for site, e in self.coefficients.items()
        }

    def budget(self, t: int) -> int:
        return int(len(self.rank) + (self.target - len(self.rank)) * self.phases.progress(t))

    def after_step(self, t: int) -> None:
        self.reset_inactive(t)
        self.update_importance(t)
        if self.phases.is_due(t):
            scores = {s: float(self.importance[f"{s}.e"][:k].sum()) for s, k in self.rank.items()}
            more = self.budget(t) - sum(self.rank.values())
            self.rank = ranking.grown(self.rank, self.max_ranks, scores, more)
            self.reset_inactive(t)

    @torch.no_grad()
    def reset_inactive(self, t: int) -> None:
        """Set e of the inactive components to WARM_UP (the next one) or zero. In place."""
        for site, e in self.coefficients.items():
            inactive = e[self.rank[site] :].zero_()
            inactive[:1] = WARM_UP if t < self.phases.end else 0

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"{s}.rank": torch.tensor(k) for s, k in self.rank.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self.rank = {site: int(state[f"{site}.rank"]) for site in self.rank}
