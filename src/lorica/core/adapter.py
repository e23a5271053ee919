"""The contract between lorica and an adapter method: two small classes.

A method is one file in `lorica.methods`: its frozen settings (`Method`) and what it puts at
a site (`Adapter`). The trainer, the files on disk and the laws in tests/laws know no more of
a method than this.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lorica.core.site import Site
from lorica.registry import Named

Base = Callable[[Tensor], Tensor]


class Adapter(nn.Module):
    """What a method adds at one site.

    An adapted site computes ``after(h, base(h), base)`` with ``h = before(x)``. Override
    either or both. `base` is the frozen layer itself: calling it again is allowed (DoRA
    does), writing to it is not. Trained tensors are float32 whatever the base's dtype.

    affine: True when the adapted site is still x -> W'x + b', so that it can be merged.
    """

    affine: ClassVar[bool] = True

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, x: Tensor, y: Tensor, base: Base) -> Tensor:
        return y

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        """Tensors that stand in for those of `layer` during the call, by parameter name.

        An adapter that gives any has a closed form in `merged`.
        """
        return {}

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The closed form of merging, if there is a cheap one; None: evaluate on the identity.

        weight: (O, I) float32, also for an embedding of I tokens and for Conv1D.
        bias: (O,) float32 or None. Returns the adapted pair; a law holds it equal to `after`.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Method(Named, family="lorica.methods"):
    """The settings of one method, and how to build it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    """The kinds of site that the method can act on."""
    default_targets: ClassVar[str] = "all-linear"
    """What target_modules=None means."""

    def share(self, sites: list[Site]) -> Any:
        """Build what all sites have in common (VeRA's projections), once per model."""
        return None

    def build(self, site: Site, shared: Any) -> Adapter:
        raise NotImplementedError  # every method has its own; there is no default update

    def learning_rate(self, parameter: str, base: float) -> float:
        """The rate of the adapter tensor called `parameter` ("a", "b", ...)."""
        return base

    def for_site(self, **settings: object) -> Self:
        """This method with some settings changed at one site (rank_pattern, alpha_pattern)."""
        return replace(self, **settings)  # type: ignore[arg-type]
