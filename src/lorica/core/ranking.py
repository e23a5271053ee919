"""Schedules over rank-one components: which component of B diag(e) A is pruned, and when.

    a (R, I)   e (R,)   b (O, R)      component i is e_i b[:, i] a[i, :]; it is pruned if e_i = 0

AdaLoRA and DoRA-dynamic share them. Components of all sites are ranked together, and exactly as
many are pruned as the budget says. The code of both papers prunes by a threshold instead, which
also prunes every component that ties with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from lorica.core.bounds import setting_error
from lorica.core.schedule import Schedule
from lorica.errors import ConfigError

TINY = 1e-12  # a norm has no slope at 0


def active_factors(a: Tensor, e: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors without the pruned components: (a (K, I), b diag(e) (O, K)); K may be 0."""
    active = e != 0
    return a[active], b[:, active] * e[active]


def lowest(scores: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """A mask of the `n` components with the lowest scores over all sites: {site: bool (R,)}.

    scores: {site: (R,)}. Exactly n are True, or all if there are fewer; ties go to the first in
    the order of `scores`.
    """
    device = next(iter(scores.values())).device
    flat = torch.cat([s.to(device) for s in scores.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=device)
    mask[flat.argsort(stable=True)[: max(n, 0)]] = True
    masks = mask.split([len(s) for s in scores.values()])
    return {site: m.to(s.device) for (site, s), m in zip(scores.items(), masks, strict=True)}


def grown(
    ranks: Mapping[str, int], max_ranks: Mapping[str, int], scores: Mapping[str, float], n: int
) -> dict[str, int]:
    """`ranks` with `n` more in total, one at a time for each of the sites with the highest scores.

    No site exceeds its `max_ranks`; ties go to the first site.
    """
    new = dict(ranks)
    while n > 0 and (growing := [site for site in new if new[site] < max_ranks[site]]):
        chosen = sorted(growing, key=lambda site: -scores[site])[:n]
        new |= {site: new[site] + 1 for site in chosen}
        n -= len(chosen)
    return new


def orthonormality_loss(matrices: Iterable[Tensor], squared: bool) -> Tensor:
    """How far the rows of the matrices Q (R, N) are from orthonormal, by ||Q Q^T - 1||_F of each.

    Returns: the mean of the norms; if `squared`, the sum of their squares.
    """
    terms = [(q @ q.T - torch.eye(len(q)).to(q)).square().sum() for q in matrices]
    squares = torch.stack([term.to(terms[0].device) for term in terms])
    return squares.sum() if squared else (squares + TINY).sqrt().mean()


class RankSchedule(Schedule):
    """A schedule over the components of all sites; a method overrides what activates and prunes.

    adapters: by site, each with parameters a, b and e, and `target`, its share of the final total
    rank. coefficient: the name of the parameter that is e.
    """

    def __init__(self, adapters: Mapping[str, Any], coefficient: str):
        self.adapters, self.coefficient = adapters, coefficient
        self.coefficients: dict[str, Tensor] = {
            site: adapter.get_parameter(coefficient) for site, adapter in adapters.items()
        }
        self.max_ranks = {site: len(e) for site, e in self.coefficients.items()}
        self.target = sum(adapter.target for adapter in adapters.values())
        self.pruned: dict[str, Tensor] = {}
        """Mask of the pruned components, {site: bool (R,)}; empty until the first pruning of a run
        or of a resumed run."""

    def active(self) -> dict[str, Tensor]:
        """Mask of the components that act: {site: bool (R,)}."""
        return {site: e.detach() != 0 for site, e in self.coefficients.items()}

    @torch.no_grad()
    def zero_pruned(self) -> None:
        """Set e of the pruned components to zero. In place."""
        for site, mask in self.pruned.items():
            self.coefficients[site].masked_fill_(mask, 0)

    def live(self) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for site, active in self.active().items():
            masks[f"{site}.a"], masks[f"{site}.b"] = active.unsqueeze(1), active.unsqueeze(0)
            masks[f"{site}.{self.coefficient}"] = active
        return masks

    def ranks(self) -> dict[str, int]:
        return {site: int(active.sum()) for site, active in self.active().items()}

    def facts(self) -> dict[str, Any]:
        return {"target_total_rank": self.target, "total_rank": sum(self.ranks().values())}


class Importance:
    """How much the loss depends on each element w of some tensors: AdaLoRA, section 3.2.

    Two moving averages of each element: M of the sensitivity |w dL/dw|, with decay beta1, and U of
    the uncertainty, the distance of the sensitivity from the new M, with decay beta2. The
    importance is M U.

    averages: {key: (2, ...)}, M and U of each tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], beta1: float, beta2: float):
        self.tensors, self.beta1, self.beta2 = tensors, beta1, beta2

    @cached_property
    def averages(self) -> dict[str, Tensor]:
        return {key: t.detach().new_zeros(2, *t.shape) for key, t in self.tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the gradients that the tensors have now. In place.

        A tensor without a gradient has sensitivity zero: an expert that no token was routed to.
        Raises: ConfigError if no tensor has a gradient.
        """
        if all(t.grad is None for t in self.tensors.values()):
            raise ConfigError(
                "ranks are chosen by gradients, and no adapter tensor has a gradient.",
                fix="call after_step() before the gradients are cleared",
            )
        for key, tensor in self.tensors.items():
            mean, uncertainty = self.averages[key]
            sensitivity = (tensor * (0 if tensor.grad is None else tensor.grad)).abs()
            mean.mul_(self.beta1).add_(sensitivity, alpha=1 - self.beta1)
            uncertainty.mul_(self.beta2).add_((sensitivity - mean).abs(), alpha=1 - self.beta2)

    def __getitem__(self, key: str) -> Tensor:
        return self.averages[key].prod(0)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `averages`. Raises: KeyError if one is missing."""
        for key, average in self.averages.items():
            average.copy_(state[key])


@dataclass(frozen=True)
class Phases:
    """When ranks change: at the multiples of `every` in start < t < end, and at `end`."""

    start: int
    end: int
    every: int

    @classmethod
    def of(cls, total: int, tinit: int | None, tfinal: int | None, every: int | None) -> Self:
        """AdaLoRA's phases in a run of `total` steps; None: in the proportions of its table 8.

        Raises: ConfigError if no step is left between the first `tinit` and the last `tfinal`.
        """
        last = max(0, total - (tinit or 0)) // 2 if tfinal is None else tfinal
        first = max(0, total - last) // 5 if tinit is None else tinit
        if first + last >= total:
            raise ConfigError(
                f"tinit is {first} and tfinal is {last}, which leaves none of the {total} steps "
                "for changing the ranks.",
                fix=f"choose them so that their sum is below {total}, or leave them out",
            )
        return cls(first, total - last, every or min(100, max(1, total // 500)))

    def is_due(self, t: int) -> bool:
        return t == self.end or (self.start < t < self.end and t % self.every == 0)

    def progress(self, t: int) -> float:
        """The fraction of the middle phase that is over after step t, in [0, 1]."""
        return min(max(t - self.start, 0) / (self.end - self.start), 1.0)


def check_target_rank(method: Any) -> None:
    """Raises: ConfigError if `method` ends with more ranks than it starts with."""
    if method.target_r is not None and method.target_r > method.r:
        fix = f"try target_r={default_target(method.r)}, or a larger r"
        raise setting_error(method, "target_r", f"at most r, {method.r}", fix=fix)


def default_target(r: int) -> int:
    """The final rank if none is set: two thirds of r, as both papers start at 1.5 times it."""
    return max(1, round(2 * r / 3))
