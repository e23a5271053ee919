"""Rank-one components of updates B diag(e) A: their product, their ranking, what is left of them.

    a (R, I)   e (R,)   b (O, R)      component i is e_i b[:, i] a[i, :]; it is out where e_i = 0

What AdaLoRA and DoRA-dynamic share. The ranking is over the components of all sites together,
and drops exactly as many as it is asked to: a threshold, as in the code of both papers, drops
every component that ties with it as well.
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


def remaining(a: Tensor, e: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The update without what is out: (a (K, I), b diag(e) (O, K)); K may be 0."""
    on = e != 0
    return a[on], b[:, on] * e[on]


def lowest(scores: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Which components have the `n` lowest scores over all sites: {site: bool (R,)}.

    scores: {site: (R,)}. Exactly n are True, or all there are; of equal scores the first in
    the order of `scores` go first.
    """
    device = next(iter(scores.values())).device
    flat = torch.cat([s.to(device) for s in scores.values()])
    out = torch.zeros(len(flat), dtype=torch.bool, device=device)
    out[flat.argsort(stable=True)[: max(n, 0)]] = True
    parts = out.split([len(s) for s in scores.values()])
    return {k: part.to(s.device) for (k, s), part in zip(scores.items(), parts, strict=True)}


def grown(
    ranks: Mapping[str, int], most: Mapping[str, int], scores: Mapping[str, float], n: int
) -> dict[str, int]:
    """`ranks` with `n` more in all: one for each site of the highest scores, round by round.

    No site exceeds `most`; of equal scores the first site goes first.
    """
    new = dict(ranks)
    while n > 0 and (growing := [site for site in new if new[site] < most[site]]):
        chosen = sorted(growing, key=lambda site: -scores[site])[:n]
        new |= {site: new[site] + 1 for site in chosen}
        n -= len(chosen)
    return new


def skewness(matrices: Iterable[Tensor], squared: bool) -> Tensor:
    """How far the rows of some Q (R, N) are from orthonormal, by ||Q Q^T - 1||_F of each.

    Returns: the mean of the norms; if `squared`, the sum of their squares.
    """
    found = [(q @ q.T - torch.eye(len(q)).to(q)).square().sum() for q in matrices]
    squares = torch.stack([one.to(found[0].device) for one in found])
    return squares.sum() if squared else (squares + TINY).sqrt().mean()


class Ranked(Schedule):
    """A schedule over the components of all sites; override what makes them come and go.

    adapters: by site, each with a, b, `target` (its share of the final total rank) and the
    parameter called `vector`, which is e.
    """

    def __init__(self, adapters: Mapping[str, Any], vector: str):
        self.adapters, self.vector = adapters, vector
        self.vectors: dict[str, Tensor] = {s: getattr(a, vector) for s, a in adapters.items()}
        self.most = {site: len(e) for site, e in self.vectors.items()}
        self.target = sum(adapter.target for adapter in adapters.values())
        self.out: dict[str, Tensor] = {}
        """Which components went last; empty: none did, or the run was resumed since."""

    def in_use(self) -> dict[str, Tensor]:
        """Which components are: {site: bool (R,)}."""
        return {site: e.detach() != 0 for site, e in self.vectors.items()}

    @torch.no_grad()
    def take_out(self) -> None:
        """Set e of what `out` names to zero. In place."""
        for site, out in self.out.items():
            self.vectors[site].masked_fill_(out, 0)

    def live(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for site, on in self.in_use().items():
            found[f"{site}.a"], found[f"{site}.b"] = on.unsqueeze(1), on.unsqueeze(0)
            found[f"{site}.{self.vector}"] = on
        return found

    def ranks(self) -> dict[str, int]:
        return {site: int(on.sum()) for site, on in self.in_use().items()}

    def facts(self) -> dict[str, Any]:
        return {"target_total_rank": self.target, "total_rank": sum(self.ranks().values())}


class Importance:
    """How much the loss hangs on each number w of some tensors: AdaLoRA, section 3.2.

    Two averages of each, kept as (2, ...): M of the sensitivity |w dL/dw|, and U of its
    distance from the new M; what is new enters with 1 - beta1 and 1 - beta2. The importance is
    M U. The gradients are those that lie in the tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], beta1: float, beta2: float):
        self.tensors, self.beta1, self.beta2 = tensors, beta1, beta2

    @cached_property
    def averages(self) -> dict[str, Tensor]:
        return {key: t.detach().new_zeros(2, *t.shape) for key, t in self.tensors.items()}

    @torch.no_grad()
    def take_in(self) -> None:
        """The sensitivities of a step, into the averages. In place.

        A tensor without a gradient counts as zero: an expert that no token went to.
        Raises: ConfigError if none has a gradient.
        """
        if all(t.grad is None for t in self.tensors.values()):
            raise ConfigError(
                "the ranks follow from gradients, and there are none.",
                fix="call after_step() before the gradients are cleared",
            )
        for key, tensor in self.tensors.items():
            mean, spread = self.averages[key]
            fresh = (tensor * (0 if tensor.grad is None else tensor.grad)).abs()
            mean.mul_(self.beta1).add_(fresh, alpha=1 - self.beta1)
            spread.mul_(self.beta2).add_((fresh - mean).abs(), alpha=1 - self.beta2)

    def __getitem__(self, key: str) -> Tensor:
        return self.averages[key].prod(0)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up `averages`. Raises: KeyError if one is missing."""
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
        """AdaLoRA's, in a run of `total` steps. None: in the proportions of its table 8.

        Raises: ConfigError if no step is left between the first `tinit` and the last `tfinal`.
        """
        last = max(0, total - (tinit or 0)) // 2 if tfinal is None else tfinal
        first = max(0, total - last) // 5 if tinit is None else tinit
        if first + last >= total:
            raise ConfigError(
                f"tinit is {first} and tfinal is {last}: of {total} steps none is left for the "
                "ranks to change in.",
                fix=f"let their sum be less than {total}, or leave them out",
            )
        return cls(first, total - last, every or min(100, max(1, total // 500)))

    def due(self, t: int) -> bool:
        return t == self.end or (self.start < t < self.end and t % self.every == 0)

    def done(self, t: int) -> float:
        """The share of the middle phase that lies behind after step t, in [0, 1]."""
        return min(max(t - self.start, 0) / (self.end - self.start), 1.0)


def check_target_rank(method: Any) -> None:
    """Raises: ConfigError if `method` ends with more ranks than it starts with."""
    if method.target_r is not None and method.target_r > method.r:
        fix = f"try target_r={two_thirds(method.r)}, or a larger r"
        raise setting_error(method, "target_r", f"at most r, {method.r}", fix=fix)


def two_thirds(r: int) -> int:
    """The final rank where none is given: both papers start at 1.5 times the final one."""
    return max(1, round(2 * r / 3))
