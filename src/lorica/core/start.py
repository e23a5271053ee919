"""The contract of a start: the first values of A and B of a LoRA, one file each in lorica.inits.

A method's `init` names a start and may set what the start can be told, in pairs after the name:
"pissa", "pissa_niter_4", "eva_rho_1.5_tau_0.999". A start never writes to the base. One whose
B A is not zero is taken out again: the adapter keeps frozen copies A0 and B0, and adds
s (B A - B0 A0) x.

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
    """The settings of one start, and how it finds A and B."""

    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    """The kinds of site that it is defined for."""
    takes_out: ClassVar[bool] = False
    """Its B A is not zero, and is taken out again, so that the adapted layer begins as the base."""
    needs_data: ClassVar[bool] = False
    """It is complete only after it has seen what flows through the model."""
    starts_as_base: ClassVar[bool] = True
    """Before the first step the adapted layer is the base, to rounding."""

    def __post_init__(self):
        """Check every setting by the type and the bounds that its field declares."""
        check_settings(self)

    @property
    def repacks(self) -> bool:
        """It goes with other codes than the quantised layer's: those of W - s B1 A1."""
        return False

    def pair_of_codes(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """(a1 (R, I), b1 (O, R)) of a start that repacks."""
        raise NotImplementedError

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """(a (R, I), b (O, R)) float32. Draws come from the global random state."""
        raise NotImplementedError

    def factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """`begin`, on memory of its own; zeros where starts are skipped.

        Raises: TargetError if the start is not defined for this kind of site; what `begin` does.
        """
        if site.kind not in self.kinds:
            raise TargetError(
                f"the start {self.name} is not defined for {site.name}, an {site.kind}.",
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
    """The start that a method's `init` asks for.

    Raises: ConfigError if there is none of that name, or a setting is unknown or no number.
    """
    name, *words = str(text).split("_")
    kind = Start.named(name)
    known = [f.name for f in fields(kind)]
    settings: dict[str, float] = {}
    for i in range(0, len(words), 2):
        key, value = words[i], "".join(words[i + 1 : i + 2])
        if key not in known:
            raise ConfigError(
                f"the start {name} has no setting {key!r}.",
                closest=closest(key, known),
                known=", ".join(known) or "none",
            )
        try:
            settings[key] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise ConfigError(
                f"the start {name} has {value!r} for {key}, which is no number.",
                fix=f"write {name}_{key}_NUMBER",
            ) from None
    return kind(**settings)


@contextmanager
def skip_starts() -> Iterator[None]:
    """Adapters that are built inside are to be filled from a file: no start is computed."""
    token = _SKIPPED.set(True)
    try:
        yield
    finally:
        _SKIPPED.reset(token)


def skipped() -> bool:
    return _SKIPPED.get()


def matrix_of(site: Site, r: int, start: str) -> Tensor:
    """The site's weight, float32 (O, I), for a start that takes it apart.

    Raises: ConfigError if it has no `r` components; TargetError if it is not finite.
    """
    most = min(site.out_features, site.in_features)
    if r > most:
        raise ConfigError(
            f"{start} cannot begin with r={r} at {site.name}: its weight has rank {most} at most.",
            shape=f"({site.out_features}, {site.in_features})",
            fix=f"use r={most} or less, or give this site its own r in rank_pattern",
        )
    weight, _ = site.dense()
    if not weight.isfinite().all():
        raise TargetError(
            f"the weight of {site.name} has numbers that are not finite.",
            fix="check the base's files",
        )
    return weight
