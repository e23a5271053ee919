"""The interface of an initialization of A and B of a LoRA; each is one file in lorica.inits.

A method's `init` names it, with settings in pairs after the name: "pissa", "pissa_niter_4",
"eva_rho_1.5_tau_0.999". An initialization never writes to the base. If its B A is not zero, it is
subtracted again: the adapter keeps frozen copies A0 and B0, and adds s (B A - B0 A0) x.

    I  in_features   O  out_features   R  r
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from lorica.core.bounds import check_settings
from lorica.core.site import Site
from lorica.errors import ConfigError, TargetError, closest
from lorica.registry import Named

_SKIPPED = ContextVar("skipped", default=False)


@dataclass(frozen=True, kw_only=True)
class Start(Named, family="lorica.inits"):
    """The settings of one initialization, and how it computes A and B."""

    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    """The kinds of site for which it is defined."""
    takes_out: ClassVar[bool] = False
    """Its B A is not zero, and is subtracted, so that the adapted layer starts as the base."""
    needs_data: ClassVar[bool] = False
    """It is complete only after it has seen the inputs of the layers."""
    starts_as_base: ClassVar[bool] = True
    """Before the first step the adapted layer is the base, to rounding."""

    def __post_init__(self):
        """Check every setting by the type and the bounds that its field declares."""
        check_settings(self)

    @property
    def repacks(self) -> bool:
        """Whether the layer is quantised again, as W - s B1 A1."""
        return False

    def pair_of_codes(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """(a1 (R, I), b1 (O, R)) of an initialization that repacks."""
        raise NotImplementedError

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """(a (R, I), b (O, R)) float32, drawn from the global random state."""
        raise NotImplementedError

    def factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """`begin` in fresh memory; zeros inside `skip_starts`.

        Raises: TargetError if it is not defined for this kind of site; what `begin` raises.
        """
        if site.kind not in self.kinds:
            raise TargetError(
                f"init={self.name} is not defined for {site.name} (kind: {site.kind}).",
                fix='leave this layer out of target_modules, or use init="kaiming"',
            )
        if skipped():
            return torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)
        with torch.no_grad():
            a, b = self.begin(site, r, scale)
        return (
            a.clone(memory_format=torch.contiguous_format),
            b.clone(memory_format=torch.contiguous_format),
        )


@cache
def start_of(text: str) -> Start:
    """The initialization that a method's `init` names.

    Raises: ConfigError if it does not exist, or a setting is unknown or not a number.
    """
    name, *words = str(text).split("_")
    kind = Start.named(name)
    known = [f.name for f in fields(kind)]
    settings: dict[str, float] = {}
    for i in range(0, len(words), 2):
        key, value = words[i], "".join(words[i + 1 : i + 2])
        if key not in known:
            raise ConfigError(
                f"init={name} has no setting {key!r}.",
                closest=closest(key, known),
                known=", ".join(known) or "none",
            )
        try:
            settings[key] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise ConfigError(
                f"init={name} has {value!r} for {key}, which is not a number.",
                fix=f"write {name}_{key}_NUMBER",
            ) from None
    return kind(**settings)


@contextmanager
def skip_starts() -> Iterator[None]:
    """Inside the block adapters are built without initialization, to be filled from a file."""
    token = _SKIPPED.set(True)
    try:
        yield
    finally:
        _SKIPPED.reset(token)


def skipped() -> bool:
    return _SKIPPED.get()


def matrix_of(site: Site, r: int, start: str) -> Tensor:
    """The site's weight, float32 (O, I), for an initialization that decomposes it.

    Raises: ConfigError if it has fewer than `r` components; TargetError if it is not finite.
    """
    largest = min(site.out_features, site.in_features)
    if r > largest:
        raise ConfigError(
            f"init={start} cannot have r={r} at {site.name}: its weight has rank {largest}.",
            shape=f"({site.out_features}, {site.in_features})",
            fix=f"use r={largest} or less, or give this layer its own r in rank_pattern",
        )
    weight, _ = site.dense()
    if not weight.isfinite().all():
        raise TargetError(
            f"the weight of {site.name} has numbers that are not finite.",
            fix="check the base's files",
        )
    return weight
