"""The adapters of a model: those of each layer, what all layers share, and how each was made.

    model.layers.0.self_attn.q_proj.adapters            the LayerAdapters of one layer
    model.layers.0.self_attn.q_proj.adapters.default    the adapter that is called default, there

All LayerAdapters of a model hold the same `Bank`. `attached(model, name)` gives everything about
one adapter at once.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method
from lorica.core.blocks import innermost
from lorica.core.draws import drawing, site_seed
from lorica.core.modules_to_save import ModuleCopy, TrainableTokens
from lorica.core.route import BASE, ByRow, BySegment, Route
from lorica.core.site import ADAPTERS, Kind, Site
from lorica.core.targets import Targets
from lorica.errors import ConfigError, closest

INSIDE = ("attention", "decoder")
"""Kinds of site that act through the model's attention."""
_SWAPPING = threading.RLock()


@dataclass(frozen=True)
class Spec:
    """What was asked for when an adapter was attached: enough to attach it again."""

    method: Method
    targets: Targets
    seed: int


@dataclass(eq=False)
class Bank:
    """What all adapted layers of a model share.

    route: of the training steps, and of every call outside of a block of `use` or `mixed`.
    specs: how each adapter was made, by name.
    were_trainable: the base parameters that were trainable before the first adapter froze them.
    attention: the attention function that the base had, while ours is in its place.
    driven: adapters whose schedule was driven to its end, or that were loaded.
    start: the sum of every tensor of an adapter as it was made, to see that it was trained.
    """

    route: Route = BASE
    specs: dict[str, Spec] = field(default_factory=dict)
    were_trainable: tuple[str, ...] = ()
    attention: str | None = None
    driven: set[str] = field(default_factory=set)
    start: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def current(self) -> Route:
        """The route that holds here and now: that of the innermost block of this thread, if any."""
        block = innermost(self)
        return self.route if block is None or block.route is None else block.route

    @property
    def acting(self) -> tuple[str, ...]:
        """The adapters of the current route; () where each row has its own."""
        route = self.current
        return () if isinstance(route, ByRow) else route.names


class LayerAdapters(nn.ModuleDict):
    """The adapters of one layer, by name. An adapter cannot have the name of an attribute here."""

    def __init__(self, site: Site, bank: Bank):
        super().__init__()
        self.site_name = site.name
        self.kind: Kind = site.kind
        self.padding_idx = site.padding_idx
        self.transposed = site.transposed
        self.in_features, self.out_features = site.in_features, site.out_features
        self.parameter, self.experts = site.parameter, site.experts
        self.model_bank = bank
        self.hook_handles: tuple = ()
        self.replaced_tensors: dict[str, Tensor] = {}  # the layer's own, during a call
        self.holding_thread: int | None = None

    def hold_layer(self) -> None:
        """Let no other thread call this layer until `release_layer`, if adapters replace its
        tensors during a call."""
        if torch.compiler.is_compiling() or self.holding_thread == threading.get_ident():
            return
        adapters: list[Adapter] = list(self.values())  # type: ignore[arg-type]
        if any(type(adapter).weights is not Adapter.weights for adapter in adapters):
            _SWAPPING.acquire()
            self.holding_thread = threading.get_ident()

    def release_layer(self) -> None:
        if not torch.compiler.is_compiling() and self.holding_thread == threading.get_ident():
            self.holding_thread = None
            _SWAPPING.release()

    def acting_adapters(self) -> list[Adapter]:
        return self.adapters_named(self.model_bank.acting)

    def adapters_named(self, names: Sequence[str]) -> list[Adapter]:
        """The adapters of these names that this layer has, in the order of the names."""
        return [self[name] for name in names if name in self]  # type: ignore[misc]

    def adapt_input(self, route: Route, x: Tensor) -> Tensor:
        """x (B, T, I), or ids (B, T), after `Adapter.before` of every segment's adapters."""
        named = self.adapters_named
        acting = [[a for a in named(s.adapters) if a.acts_before] for s in route.segments]
        if not any(acting):
            return x
        parts = list(route.split(x, self.site_name))
        for i, adapters in enumerate(acting):
            for adapter in adapters:
                parts[i] = adapter.before(parts[i])
        return route.join(x, parts)

    def adapt_output(self, route: Route, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        """y (B, T, O) after `Adapter.after` of every segment's adapters.

        x: the input, after `adapt_input`. base: the layer without adapters.
        """
        named = self.adapters_named
        acting = [[a for a in named(s.adapters) if a.acts_after] for s in route.segments]
        if not any(acting):
            return y
        xs = route.split(x, self.site_name)
        if isinstance(route, BySegment) and (kind := _common_class(acting)) is not None:
            adapters = [adapter for (adapter,) in acting]
            if (joined := kind.apply_many(adapters, route.sizes, x, y, base)) is not None:
                return joined
        ys = list(route.split(y, self.site_name))
        for i, (segment, adapters) in enumerate(zip(route.segments, acting, strict=True)):
            for adapter in adapters:
                if segment.seed is None:
                    ys[i] = adapter.after(xs[i], ys[i], base)
                    continue
                with drawing(site_seed(segment.seed, self.site_name), x.device):
                    ys[i] = adapter.after(xs[i], ys[i], base)
        return route.join(y, ys)

    def adapt_attention(self, query: Tensor, heads: Tensor, scale: float) -> Tensor:
        """What an attention site gives, (B, H, T, D), after the adapters of the site."""
        route = self.model_bank.current
        acting = [self.adapters_named(segment.adapters) for segment in route.segments]
        if not any(acting):
            return heads
        queries = route.split(query, self.site_name)
        parts = list(route.split(heads, self.site_name))
        for i, adapters in enumerate(acting):
            for adapter in adapters:
                parts[i] = adapter.attend(queries[i], parts[i], scale)
        return route.join(heads, parts)

    def as_site(self, module: nn.Module) -> Site:
        """The site of these adapters. module: the layer."""
        size = self.in_features, self.out_features
        stack = self.parameter, self.experts
        return Site(self.site_name, module, self.kind, *size, self.transposed, False, *stack)


class ExpertAdapters(nn.ModuleDict):
    """The LayerAdapters of a module of experts: one for each adapted parameter, by its name."""


def _common_class(acting: Sequence[Sequence[Adapter]]) -> type[Adapter] | None:
    """The class of the adapters, where each segment has one, and all are of one class."""
    if any(len(adapters) != 1 for adapters in acting):
        return None
    kinds = {type(adapter) for (adapter,) in acting}
    return kinds.pop() if len(kinds) == 1 else None


class AdaptedLayer(NamedTuple):
    """name: of the layer in the model; of an expert's site, of the parameter."""

    name: str
    module: nn.Module
    adapters: LayerAdapters


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLayer]:
    """Every layer that has adapters, in model order."""
    for name, module in model.named_modules():
        adapters = module._modules.get(ADAPTERS)
        if isinstance(adapters, LayerAdapters):
            yield AdaptedLayer(name, module, adapters)
        elif isinstance(adapters, ExpertAdapters):
            for key, own in adapters.items():
                yield AdaptedLayer(f"{name}.{key}", module, own)  # type: ignore[arg-type]


def adapters_at(site: Site, bank: Bank) -> LayerAdapters:
    """The LayerAdapters of a site. In place: they are added where there are none."""
    owner, key = site.module, ADAPTERS
    if site.kind == "expert":
        if ADAPTERS not in owner._modules:
            owner.add_module(ADAPTERS, ExpertAdapters())
        owner, key = owner._modules[ADAPTERS], site.parameter
        assert owner is not None
    if key not in owner._modules:
        owner.add_module(key, LayerAdapters(site, bank))
    return owner._modules[key]  # type: ignore[return-value]


def remove_adapters(layer: AdaptedLayer) -> None:
    """Take the LayerAdapters and their hooks off a layer. In place."""
    for handle in layer.adapters.hook_handles:
        handle.remove()
    own = layer.module._modules[ADAPTERS]
    if isinstance(own, ExpertAdapters):
        del own[layer.adapters.parameter]
    if own is layer.adapters or not own:
        del layer.module._modules[ADAPTERS]


def bank_of(model: nn.Module) -> Bank:
    """The bank of a model; an empty one if it has no adapters."""
    return next((layer.adapters.model_bank for layer in adapted_layers(model)), Bank())


def spec_of(model: nn.Module, name: str) -> Spec:
    """How adapter `name` was made. Raises: ConfigError if there is none of that name."""
    specs = bank_of(model).specs
    if name not in specs:
        raise ConfigError(
            f"there is no adapter {name!r} on this model.",
            closest=closest(name, specs),
            known=", ".join(specs) or "none",
            fix="adapt() or load() it first",
        )
    return specs[name]


@dataclass(frozen=True)
class Attached:
    """One adapter of a model, as it is now.

    sites: all that it acts on, by name, in model order. adapters: what the method built there.
    whole: fully trained layers and trainable tokens (modules_to_save,
    trainable_token_indices), by site.
    """

    name: str
    spec: Spec
    sites: dict[str, Site]
    adapters: dict[str, Adapter]
    whole: dict[str, ModuleCopy | TrainableTokens]

    @property
    def method(self) -> Method:
        return self.spec.method

    @property
    def every(self) -> dict[str, Adapter]:
        """`adapters` and `whole` together, in model order."""
        both: dict[str, Adapter] = {**self.adapters, **self.whole}
        return {site: both[site] for site in self.sites}


def attached(model: nn.Module, name: str = "default") -> Attached:
    """A snapshot of adapter `name`. Raises: ConfigError if there is none of that name."""
    snapshot = Attached(name, spec_of(model, name), {}, {}, {})
    for site, module, layer_adapters in adapted_layers(model):
        if name not in layer_adapters:
            continue
        adapter: Adapter = layer_adapters[name]  # type: ignore[assignment]
        snapshot.sites[site] = layer_adapters.as_site(module)
        if isinstance(adapter, ModuleCopy | TrainableTokens):
            snapshot.whole[site] = adapter
        else:
            snapshot.adapters[site] = adapter
    return snapshot


@torch.no_grad()
def parameter_sums(adapters: Iterable[Adapter]) -> list[Tensor]:
    """The sum of every parameter, in order."""
    return [p.double().sum() for adapter in adapters for p in adapter.parameters()]
