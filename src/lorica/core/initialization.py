"""The interface of an initialization of A and B of a LoRA; each is one file in lorica.inits.

A method's `init` names it, with settings in pairs after the name: "pissa", "pissa_niter_4",
"eva_rho_1.5_tau_0.999". An initialization never writes to the base. If the initial B A is not
zero, it is subtracted: the adapter stores frozen copies A0 and B0, and adds s (B A - B0 A0) x.

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

_IS_SKIPPED = ContextVar("initialization_is_skipped", default=False)


@dataclass(frozen=True, kw_only=True)
class Initialization(Named, family="lorica.inits"):
    """The settings of one initialization, and how it computes A and B."""

    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    """The kinds of layer for which it is defined."""
    subtracts_initial: ClassVar[bool] = False
    """The initial B A is not zero, and is subtracted from the update."""
    needs_data: ClassVar[bool] = False
    """It needs inputs of the layers; see inits.eva.calibrate."""
    starts_as_base: ClassVar[bool] = True
    """Before the first step the adapted layer equals the base layer, up to rounding."""

    def __post_init__(self):
        """Check every setting by the type and the bounds that its field declares."""
        check_settings(self)

    @property
    def requantises(self) -> bool:
        """Whether W - s B1 A1 is quantised again, and used in place of the base layer."""
        return False

    def requantised_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """(a1 (R, I), b1 (O, R)); defined only where `requantises` is true."""
        raise NotImplementedError

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """Compute (a (R, I), b (O, R)) float32. Random values come from the global generator.

        At a site of experts: those of one expert.
        """
        raise NotImplementedError

    def factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        """`initial_factors`, copied to new memory; zeros inside `skip_initialization`.

        At a site of experts (a (E, R, I), b (E, O, R)), one expert after another.

        Raises: TargetError if it is not defined for this kind of layer; as `initial_factors`.
        """
        if site.kind not in self.kinds:
            raise TargetError(
                f"init={self.name} is not defined for {site.name} (kind: {site.kind}).",
                fix='leave this layer out of target_modules, or use init="kaiming"',
            )
        if initialization_skipped():
            stack = (site.experts,) if site.experts else ()
            return (
                torch.zeros(*stack, r, site.in_features),
                torch.zeros(*stack, site.out_features, r),
            )
        with torch.no_grad():
            if site.experts:
                pairs = [self.initial_factors(site, r, scale) for _ in range(site.experts)]
                a, b = (torch.stack(own) for own in zip(*pairs, strict=True))
            else:
                a, b = self.initial_factors(site, r, scale)
        return (
            a.clone(memory_format=torch.contiguous_format),
            b.clone(memory_format=torch.contiguous_format),
        )


@cache
def parse_initialization(text: str) -> Initialization:
    """Parse a method's `init`: the name of an initialization, and its settings.

    Raises: ConfigError if it does not exist, or a setting is unknown or not a number.
    """
    name, *words = str(text).split("_")
    kind = Initialization.named(name)
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
def skip_initialization() -> Iterator[None]:
    """Inside the block adapters are built with zeros, because a file provides the values."""
    token = _IS_SKIPPED.set(True)
    try:
        yield
    finally:
        _IS_SKIPPED.reset(token)


def initialization_skipped() -> bool:
    return _IS_SKIPPED.get()


def weight_to_decompose(site: Site, r: int, init: str) -> Tensor:
    """The weight of a layer, float32 (O, I), for an initialization that decomposes it.

    Raises: ConfigError if it has fewer than `r` components; TargetError if it is not finite.
    """
    largest = min(site.out_features, site.in_features)
    if r > largest:
        raise ConfigError(
            f"init={init} cannot have r={r} at {site.name}: its weight has rank {largest}.",
            shape=f"({site.out_features}, {site.in_features})",
            fix=f"use r={largest} or less, or give this layer its own r in rank_pattern",
        )
    weight, _ = site.dense()
    if not weight.isfinite().all():
        raise TargetError(
            f"the weight of {site.name} has values that are NaN or infinite.",
            fix="check the base's files",
        )
    return weight
