"""The weighted sum of attached adapters, as the factors of a plain LoRA at every site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorica.base.load import LoadedModel
from lorica.core.adapter import Adapter
from lorica.core.bank import spec_of
from lorica.core.condition import Conditioned
from lorica.core.site import Site
from lorica.core.sums import DENSE, CombineMethod, cancelled, summed
from lorica.errors import MergeError, listed
from lorica.formats.low_rank import (
    LowRankUpdate,
    change_of,
    check_reducible,
    compressed,
    low_rank_update,
    truncated,
)
from lorica.formats.to_lora import Updates, of_method_and_whole


@dataclass(frozen=True)
class SumSettings:
    """See `combine`. weights: of the parts. generator: of what DARE drops."""

    method: CombineMethod
    weights: list[float]
    rank: int | None
    density: float
    generator: torch.Generator


def sums(
    opened: LoadedModel, names: list[str], sources: list[str], settings: SumSettings
) -> tuple[Updates, Updates, float]:
    """(the exact sum, what is written, the share that cancels), by site."""
    parts = [_by_site(opened, *pair, settings) for pair in zip(names, sources, strict=True)]
    sites = {name: site for part in parts for name, (site, _) in part.items()}
    exact, written, lost, every = Updates(), Updates(), 0.0, 0.0
    for name, site in sites.items():
        weights = [w for w, part in zip(settings.weights, parts, strict=True) if name in part]
        changes = [_change(site, part[name][1]) for part in parts if name in part]
        conflict = cancelled([change.delta for change in changes], weights)
        lost, every = lost + conflict[0], every + conflict[1]
        whole, cut = _of_site(changes, weights, settings)
        exact.append((site, whole))
        written.append((site, cut))
    return exact, written, lost / every if every else 0.0


def _by_site(
    opened: LoadedModel, name: str, source: str, settings: SumSettings
) -> dict[str, tuple[Site, Adapter]]:
    """The adapters of a part. Raises: MergeError if it is more than a change of weights."""
    of_method, whole = of_method_and_whole(opened.model, name)
    check_no_condition(source, [adapter for _, adapter in of_method])
    rank = settings.rank if settings.method not in DENSE else 1  # those sums have one in any case
    check_reducible(of_method, spec_of(opened.model, name).method.name, rank)
    more = [site for site, _ in whole] + [s for s, _ in of_method if s.kind == "other"]
    if more:
        raise MergeError(
            f"{source} has layers or token rows that were trained whole, which are not combined.",
            sites=listed(site.name for site in more),
            fix="merge each adapter into a model of its own: lorica merge",
        )
    return {site.name: (site, adapter) for site, adapter in of_method}


def check_no_condition(source: str, adapters: Sequence[Any]) -> None:
    """Raises: MergeError if an adapter is another one for each condition."""
    conditioned = next((a for a in adapters if isinstance(a, Conditioned)), None)
    if conditioned is not None:
        raise MergeError(
            f"{source} generates an adapter for each condition, and is none by itself.",
            known=listed(conditioned.known),
            fix="write the condition that is meant with lorica export --condition, and name that",
        )


@dataclass(frozen=True)
class _Change:
    """delta: W' - W (O, I). factors: a, b with delta = b a, if the adapter has any. shift: of the
    bias (O,)."""

    delta: Tensor
    factors: tuple[Tensor, Tensor] | None
    shift: Tensor | None


@torch.no_grad()
def _change(site: Site, adapter: Adapter) -> _Change:
    if adapter.factors() is not None:
        update = low_rank_update(site, adapter, None)
        return _Change(update.b @ update.a, (update.a, update.b), update.shift)
    delta, shift = change_of(site, adapter)
    return _Change(delta, None, shift if shift is not None and shift.any() else None)


@torch.no_grad()
def _of_site(
    changes: list[_Change], weights: list[float], settings: SumSettings
) -> tuple[LowRankUpdate, LowRankUpdate]:
    """(the exact sum, what is written) at one site."""
    shifts = [w * c.shift for w, c in zip(weights, changes, strict=True) if c.shift is not None]
    shift = torch.stack(shifts).sum(0) if shifts else None
    factors = [change.factors for change in changes if change.factors is not None]
    if settings.method in DENSE or len(factors) < len(changes):
        deltas = [change.delta for change in changes]
        method = settings.method if settings.method in DENSE else "linear"
        total = summed(method, deltas, weights, settings.density, settings.generator)
        return tuple(  # type: ignore[return-value]
            LowRankUpdate(a, b, shift, error)
            for a, b, error in (truncated(total, r) for r in (min(total.shape), settings.rank or 1))
        )
    a = torch.cat([a for a, _ in factors])
    b = torch.cat([w * b for w, (_, b) in zip(weights, factors, strict=True)], dim=1)
    whole = LowRankUpdate(a, b, shift, 0.0)
    limit = settings.rank
    if settings.method == "svd" and limit is None:
        limit = max(len(a) for a, _ in factors)
    if limit is None and (settings.method == "cat" or len(changes) == 1):
        return whole, whole
    a, b, error = compressed(a, b, limit or len(a))
    return whole, LowRankUpdate(a, b, shift, error)
