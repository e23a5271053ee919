"""What hangs on a site: its adapters by name, the model's switch, and the hooks.

The hooks are module-level functions, so adapted models can be deep-copied, compiled,
checkpointed and sharded like any other.
"""

import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core import attention
from lorica.core.adapter import Adapter, BaseLayer, Method
from lorica.core.blocks import innermost
from lorica.core.draws import at_site, drawing
from lorica.core.mixed import enter_by_row, inputs_of
from lorica.core.route import BASE, ByRow, BySegment, Everywhere, Route
from lorica.core.site import PORT, Kind, Site
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
class Switch:
    """What all adapted layers of a model share.

    route: of the training steps, and of every call outside of a block of `use` or `mixed`.
    specs: how each adapter was made, by name.
    frozen: the base parameters that were trainable before the first adapter froze them.
    attention: the attention function that the base had, while ours is in its place.
    driven: adapters whose schedule was driven to its end, or that were loaded.
    start: the sum of every tensor of an adapter as it was made, to see that it was trained.
    """

    route: Route = BASE
    specs: dict[str, Spec] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
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


class Port(nn.ModuleDict):
    """The adapters of one site, by name."""

    def __init__(self, site: Site, switch: Switch):
        super().__init__()
        self.site_name = site.name
        self.kind: Kind = site.kind
        self.padding_idx = site.padding_idx
        self.transposed = site.transposed
        self.in_features, self.out_features = site.in_features, site.out_features
        self.switch = switch
        self.handles: tuple = ()
        self.own: dict[str, Tensor] = {}
        self.holder: int | None = None  # the thread whose call has put tensors in the layer's place

    def hold(self) -> None:
        """Let no other thread call this layer until `release`, if adapters stand in its tensors'
        place during a call."""
        if torch.compiler.is_compiling() or self.holder == threading.get_ident():
            return
        adapters: list[Adapter] = list(self.values())  # type: ignore[arg-type]
        if any(type(adapter).weights is not Adapter.weights for adapter in adapters):
            _SWAPPING.acquire()
            self.holder = threading.get_ident()

    def release(self) -> None:
        if not torch.compiler.is_compiling() and self.holder == threading.get_ident():
            self.holder = None
            _SWAPPING.release()

    def acting(self) -> list[Adapter]:
        return self.of(self.switch.acting)

    def of(self, names: Sequence[str]) -> list[Adapter]:
        """The adapters of these names that this site has, in their order."""
        return [self[name] for name in names if name in self]  # type: ignore[misc]

    def before(self, route: Route, x: Tensor) -> Tensor:
        """x (B, T, I), or ids (B, T), after `Adapter.before` of every segment's adapters."""
        acting = [[a for a in self.of(s.adapters) if a.acts_before] for s in route.segments]
        if not any(acting):
            return x
        parts = list(route.split(x, self.site_name))
        for i, adapters in enumerate(acting):
            for adapter in adapters:
                parts[i] = adapter.before(parts[i])
        return route.join(x, parts)

    def after(self, route: Route, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        """y (B, T, O) after `Adapter.after` of every segment's adapters.

        x: the input, after `before`. base: the layer without adapters.
        """
        acting = [[a for a in self.of(s.adapters) if a.acts_after] for s in route.segments]
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
                with drawing(at_site(segment.seed, self.site_name), x.device):
                    ys[i] = adapter.after(xs[i], ys[i], base)
        return route.join(y, ys)

    def attended(self, query: Tensor, heads: Tensor, scale: float) -> Tensor:
        """What an attention site gives, (B, H, T, D), after the adapters of the site."""
        route = self.switch.current
        acting = [self.of(segment.adapters) for segment in route.segments]
        if not any(acting):
            return heads
        queries = route.split(query, self.site_name)
        parts = list(route.split(heads, self.site_name))
        for i, adapters in enumerate(acting):
            for adapter in adapters:
                parts[i] = adapter.attend(queries[i], parts[i], scale)
        return route.join(heads, parts)

    def site(self, name: str, module: nn.Module) -> Site:
        return Site(name, module, self.kind, self.in_features, self.out_features, self.transposed)


def onion(adapters: Sequence[Adapter], x: Tensor, base: BaseLayer) -> Tensor:
    """The adapted layer, written out: the definition the hooks must agree with."""
    for adapter in adapters:
        x = adapter.before(x)
    y = base(x)
    for adapter in adapters:
        y = adapter.after(x, y, base)
    return y


def _common_class(acting: Sequence[Sequence[Adapter]]) -> type[Adapter] | None:
    """The class of the adapters, where each segment has one, and all are of one class."""
    if any(len(adapters) != 1 for adapters in acting):
        return None
    kinds = {type(adapter) for (adapter,) in acting}
    return kinds.pop() if len(kinds) == 1 else None


def _before(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    port: Port = module.adapters  # type: ignore[assignment]
    port.hold()
    if not args and port.kind in ("linear", "embedding"):
        args, options = _by_position(module, options)
    route = port.switch.current
    if isinstance(route, Everywhere):
        for adapter in port.of(route.names):
            for key, tensor in adapter.weights(module).items():  # until _restore
                tensors = _tensors(module, key)
                port.own.setdefault(key, tensors[key])
                tensors[key] = tensor
    return (port.before(route, args[0]), *args[1:]) if args else args, options


def _by_position(module: nn.Module, options: dict) -> tuple[tuple, dict]:
    """A call by keywords alone, with its first argument by position: the hooks read it there."""
    first = next(iter(inspect.signature(module.forward).parameters), None)
    if first not in options:
        return (), options
    return (options[first],), {key: value for key, value in options.items() if key != first}


def _after(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
    port: Port = module.adapters  # type: ignore[assignment]
    x = args[0] if args else y  # a layer that is called by keywords has no adapter that reads x
    adapted = port.after(port.switch.current, x, y, module.forward)  # .forward skips the hooks
    if port.padding_idx is None or adapted is y:
        return adapted
    return torch.where((x == port.padding_idx).unsqueeze(-1), y, adapted)


def _enter(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    port: Port = module.adapters  # type: ignore[assignment]
    route = port.switch.current
    if isinstance(route, ByRow):
        options = attention.named(module, args, options)
        inputs = inputs_of(options)
        route.split(inputs, port.site_name)  # the batch has the rows that are named
        own = zip(route.segments, route.rows, strict=True)
        parts = [(a, rows.to(inputs.device)) for s, rows in own for a in port.of(s.adapters)]
        return (), enter_by_row(parts, module, options)
    if acting := port.of(route.names):
        args, options = (), attention.named(module, args, options)
        for adapter in acting:
            options = adapter.enter(module, options)
    return args, options


def _restore(module: nn.Module, args: tuple, y: object) -> None:
    """Put the layer's own tensors back; runs also when the layer raised."""
    port: Port = module.adapters  # type: ignore[assignment]
    for key, tensor in port.own.items():
        _tensors(module, key)[key] = tensor
    port.own.clear()
    port.release()


def _tensors(module: nn.Module, key: str) -> dict[str, Any]:
    """Where the layer keeps its tensor `key`: among its parameters, or the codes of packed layers
    among its buffers."""
    return module._parameters if key in module._parameters else module._buffers


@torch.no_grad()
def sums(adapters: Iterable[Adapter]) -> list[Tensor]:
    """The sum of every parameter, in order."""
    return [p.double().sum() for adapter in adapters for p in adapter.parameters()]


def hooked(site: Site) -> tuple:
    """The hooks of a site, registered. What acts inside attention is called from there."""
    module = site.module
    if site.kind == "attention":
        return ()
    if site.kind == "decoder":
        return (module.register_forward_pre_hook(_enter, with_kwargs=True),)
    return (
        module.register_forward_pre_hook(_before, with_kwargs=True),
        module.register_forward_hook(_after),
        module.register_forward_hook(_restore, always_call=True),
    )


def ports(model: nn.Module) -> Iterator[tuple[str, nn.Module, Port]]:
    """(name, layer, port) of every adapted site, in model order."""
    for name, module in model.named_modules():
        if isinstance(port := getattr(module, PORT, None), Port):
            yield name, module, port


def switch_of(model: nn.Module) -> Switch:
    return next((port.switch for _, _, port in ports(model)), Switch())


def spec_of(model: nn.Module, name: str) -> Spec:
    """How adapter `name` was made. Raises: ConfigError if there is none of that name."""
    specs = switch_of(model).specs
    if name not in specs:
        raise ConfigError(
            f"there is no adapter {name!r} on this model.",
            closest=closest(name, specs),
            known=", ".join(specs) or "none",
            fix="adapt() or load() it first",
        )
    return specs[name]
