"""The contract between lorica and an adapter method: two small classes.

A method is one file or folder in `lorica.methods`: its frozen settings (`Method`) and the module
that it adds at a site (`Adapter`). The trainer, the files on disk and the tests in tests/laws use
only these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lorica.core.bounds import check_settings
from lorica.core.row_form import RowForm
from lorica.core.schedule import Schedule
from lorica.core.site import Kind, Site
from lorica.errors import ConfigError, closest
from lorica.registry import Named

BaseLayer = Callable[[Tensor], Tensor]
Rates = tuple[float, float, float]
"""Default learning rates: AdamW on bases of hidden size 64 and 4096, and SGD; see core.rates."""


class Adapter(nn.Module):
    """The module that a method adds at one site.

    An adapted layer computes ``after(h, base(h), base)`` with ``h = before(x)``. Override
    either or both; all else has a default. `base` is the frozen layer itself: it may be called
    again (DoRA does), but not written to. At an attention site override `attend` instead, at the
    decoder `enter`. Trained tensors are float32, whatever the dtype of the base.

    Where several adapters act on one token, each changes what the one before it returned, in the
    order in which they were activated: first every `before`, then the layer, then every `after`.

    affine: the adapted site is still x -> W'x + b', so that it can be merged.
    """

    affine: ClassVar[bool] = True
    acts_before: ClassVar[bool] = False
    """Whether `before` is overridden; set for every subclass."""
    acts_after: ClassVar[bool] = False
    """Whether `after` is overridden; set for every subclass. An adapter that does neither may hang
    on a layer that is called by keywords."""
    frozen: tuple[str, ...] = ()
    """Parameters that are not trained now; a schedule may add to them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.acts_before = cls.before is not Adapter.before
        cls.acts_after = cls.after is not Adapter.after

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return y

    @classmethod
    def apply_many(
        cls,
        adapters: Sequence[Any],
        sizes: Sequence[int],
        x: Tensor,
        y: Tensor,
        base: BaseLayer,
    ) -> Tensor | None:
        """`after` for a packed batch (1, T, ...) whose segments have an adapter each, at once.

        adapters: of this very class, one for each segment. sizes: tokens of each segment.
        None: this class has no batched form for them, and they are applied one by one; y is
        unchanged then.
        """
        return None

    @classmethod
    def run_experts(
        cls, module: nn.Module, adapters: Mapping[str, Any], inputs: tuple[Any, ...]
    ) -> Tensor | None:
        """What a module of experts returns for `inputs`, with one adapter at each parameter named.

        adapters: of this very class. None: this class has no such form for the module, which
        computes with the tensors of `weights` then.
        """
        return None

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        """Tensors that replace those of `layer` during the call, by their names there.

        An adapter that returns any has a closed form in `merged`.
        """
        return {}

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The update as a plain LoRA: (a (R, I), b (O, R)) float32 with W' - W = b a.

        None: the update is not of low rank, or not known without the base.
        """
        return None

    def row_form(self, base: BaseLayer, dtype: torch.dtype) -> RowForm | None:
        """What `after` does at a linear layer, in eval mode, as a form that serving can stack.

        base: the layer itself, which computes in `dtype`. The form is float32; a test compares it
        with `after`. None: there is no such form.
        """
        factors = self.factors()
        return None if factors is None else RowForm(*factors, shift=self.bias_shift())

    def bias_shift(self) -> Tensor | None:
        """What an update that has `factors` adds to the bias of a linear layer, (O,) float32."""
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """A cheap closed form of the merged layer; None: evaluate it on the identity.

        weight: (O, I) float32, also for an embedding of I tokens and for Conv1D.
        bias: (O,) float32 or None. Returns the adapted pair; a test compares it with `after`.
        """
        factors = self.factors()
        return None if factors is None else (torch.addmm(weight, factors[1], factors[0]), bias)

    def attend(self, query: Tensor, mixed: Tensor, scale: float) -> Tensor:
        """At an attention site: the outputs of its heads, adapted.

        query: (B, H, T, D) as the scores use it. mixed: (B, H, T, D), the softmax-weighted
        values. scale: the factor of the scores.
        """
        return mixed

    def enter(self, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        """At the decoder: the keyword arguments of its call, adapted. See core.attention."""
        return options

    def move_to(self, site: Site) -> None:
        """Act at `site` from now on: the same layer in another copy of the base. In place.

        For adapters that hold the layer they were built for.
        """

    def condition(self, conditions: Sequence[str] | None, lengths: Sequence[int] | None) -> None:
        """Set the conditions of the rows of the next forward passes. Most methods ignore them.

        conditions: one for each row; None: there are none. lengths: tokens of each row of a packed
        batch; None: the batch is not packed.
        """


@dataclass(frozen=True, kw_only=True)
class Method(Named, family="lorica.methods"):
    """The settings of one method, and how to build it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    """The kinds of site that the method can act on."""
    paper: ClassVar[str] = ""
    """Who proposed it: authors, year, arXiv number."""
    count: ClassVar[str] = ""
    """Trained parameters of one site, as an expression in r, I, O and the settings."""
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "exact"
    """Whether `lorica export` makes a plain LoRA of it. exact: from `factors`. approximate: W' - W
    is known, since the site stays affine, and is cut to a rank. never: it is not affine."""
    on_quantised: ClassVar[bool] = True
    """Works on quantised layers (4-bit, 8-bit), which keep no float weight."""
    mixes: ClassVar[bool] = True
    """Each row or segment of a batch may have an adapter of its own."""
    starts_as_base: ClassVar[bool] = True
    """Before the first step the adapted model is the base."""
    rates: ClassVar[Rates] = (0.007, 0.0002, 1.0)
    """Default learning rates; those of lora unless the method declares its own."""
    rate_source: ClassVar[str] = "as lora"
    """The source of the rate for hidden size 4096; the rate for 64 is measured."""

    def __post_init__(self):
        """Check every setting by the type and the bounds that its field declares.

        A method that checks more, calls this first. Raises: ConfigError.
        """
        check_settings(self)

    def choose(self, sites: list[Site]) -> list[Site]:
        """The sites that target_modules=None means, among those of `kinds`."""
        return [site for site in sites if site.kind == "linear" and not site.is_head]

    def positions(self) -> int:
        """Positions of the base's context that the adapter uses up."""
        return 0

    def share(self, sites: list[Site]) -> Any:
        """Build what all sites share (VeRA's projections), once per model."""
        return None

    def build(self, site: Site, shared: Any) -> Adapter:
        raise NotImplementedError  # every method has its own; there is no default update

    @property
    def replaces_weights(self) -> bool:
        """Whether its adapters replace tensors of the layer, so that rows cannot be mixed."""
        return False

    @property
    def rate_factor(self) -> float:
        """The factor of its default learning rates that follows from the settings."""
        return 1.0

    def learning_rate(self, parameter: str, base: float, kind: Kind = "linear") -> float:
        """The rate of the adapter tensor `parameter` ("a", "b", ...) at a site of `kind`."""
        return base

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Schedule | None:
        """The actions of the method around the optimizer steps of a run; None: there are none.

        adapters: those of this method by site name, in model order. total: optimizer steps of
        the run. epoch: optimizer steps of one pass over the rows, at least 1.
        Raises: ConfigError if the method's phases do not fit into `total` steps.
        """
        return None

    def for_conditions(
        self, conditions: Sequence[str] | None, hidden_size: int | None = None
    ) -> Self:
        """This method with the settings that follow from the conditions of the training rows.

        conditions: None: the rows have none. hidden_size: that of the base; None: unknown.
        """
        return self

    def for_site(self, **settings: object) -> Self:
        """This method with some settings changed at one site (rank_pattern, alpha_pattern)."""
        return replace(self, **settings)  # type: ignore[arg-type]


def method(name: str, **settings: object) -> Method:
    """Method `name` with these settings: ``lorica.method("adalora", r=12, target_r=8)``.

    Raises: ConfigError if the method or a setting does not exist.
    """
    kind = Method.named(name)
    known = [f.name for f in fields(kind)]
    for key in settings.keys() - set(known):
        raise ConfigError(
            f"{name} has no setting {key!r}.",
            closest=closest(key, known),
            known=", ".join(known),
        )
    return kind(**settings)
