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
from lorica.core.adapter import Adapter, BaseLayer, Method, acts
from lorica.core.blocks import Choice, innermost
from lorica.core.draws import Seed, at_site, drawing
from lorica.core.line import Line, after_along, before_along
from lorica.core.mixed import by_row, enter_by_row, inputs_of
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
    """Which adapters act, shared by all sites of a model. Inside a block another choice does, in
    the thread that opened it; see core.blocks.

    active: names, applied in this order.
    line: (name, tokens) of each part of rows that lie end to end, in place of `active`; see
        core.line.
    seeds: of what an adapter draws, by name; without one it draws from torch's generators as they
        are; see core.draws.
    specs: how each adapter was made, by name.
    frozen: the base parameters that were trainable before the first adapter froze them.
    attention: the attention function that the base had, while ours is in its place.
    driven: adapters whose schedule was driven to its end, or that were loaded.
    start: the sum of every tensor of an adapter as it was made, to see that it was trained.
    """

    active: tuple[str, ...] = ()
    line: Line = ()
    seeds: dict[str, Seed] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    attention: str | None = None
    driven: set[str] = field(default_factory=set)
    start: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def choice(self) -> Choice | None:
        """What the innermost block has chosen, in this thread; None: no block has."""
        block = innermost(self)
        return None if block is None else block.choice

    @property
    def acting(self) -> tuple[str, ...]:
        """Names of the adapters that act on all rows of a batch, here and now."""
        choice = self.choice
        return self.active if choice is None else choice.names

    @property
    def rows(self) -> tuple[str | None, ...] | None:
        """The adapter of each row of a batch, here and now; None: they have none of their own."""
        choice = self.choice
        return None if choice is None else choice.rows

    @property
    def segments(self) -> Line:
        """`line`, where no block is open."""
        return self.line if self.choice is None else ()


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
        return [self[name] for name in self.switch.acting if name in self]  # type: ignore[misc]

    def after_of(self, name: str, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        """`Adapter.after` of one adapter, drawing from its own seed if it has one."""
        adapter: Adapter = self[name]  # type: ignore[assignment]
        if name not in self.switch.seeds:
            return adapter.after(x, y, base)
        with drawing(at_site(self.switch.seeds[name], self.site_name), x.device):
            return adapter.after(x, y, base)

    def attended(self, query: Tensor, heads: Tensor, scale: float) -> Tensor:
        """What an attention site gives, (B, H, T, D), after the adapters of the site."""
        if self.switch.rows:
            parts = self.parts(query)
            return by_row(parts, heads, lambda a, i: a.attend(query[i], heads[i], scale))
        for adapter in self.acting():
            heads = adapter.attend(query, heads, scale)
        return heads

    def parts(self, x: Tensor) -> list[tuple[Adapter, Tensor]]:
        """Every adapter that some row of x (B, ...) has here, and the numbers of its rows.

        Raises: ConfigError if the batch has another number of rows than were named.
        """
        names = self.switch.rows or ()
        if len(names) != len(x):
            raise ConfigError(
                f"adapters are named for {len(names)} rows, and the batch has {len(x)}.",
                fix="name one for each row; rows laid end to end cannot be told apart",
            )
        return [
            (self[name], torch.tensor([i for i, n in enumerate(names) if n == name]).to(x.device))  # type: ignore[misc]
            for name in dict.fromkeys(names)
            if name is not None and name in self
        ]

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


def _before(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    port: Port = module.adapters  # type: ignore[assignment]
    port.hold()
    if not args and port.kind in ("linear", "embedding"):
        args, options = _by_position(module, options)
    if port.switch.rows:
        x = args[0]
        x = by_row(port.parts(x), x, lambda adapter, rows: adapter.before(args[0][rows]))
        return (x, *args[1:]), options
    if line := port.switch.segments:
        return (before_along(line, port, args[0]), *args[1:]), options
    for adapter in port.acting():
        for key, tensor in adapter.weights(module).items():  # until _restore
            tensors = _tensors(module, key)
            port.own.setdefault(key, tensors[key])
            tensors[key] = tensor
        if acts(adapter, "before"):
            args = (adapter.before(args[0]), *args[1:])
    return args, options


def _by_position(module: nn.Module, options: dict) -> tuple[tuple, dict]:
    """A call by keywords alone, with its first argument by position: the hooks read it there."""
    first = next(iter(inspect.signature(module.forward).parameters), None)
    if first not in options:
        return (), options
    return (options[first],), {key: value for key, value in options.items() if key != first}


def _after(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
    port: Port = module.adapters  # type: ignore[assignment]
    adapted = _adapted(port, module, args, y)
    if port.padding_idx is None or adapted is y:
        return adapted
    return torch.where((args[0] == port.padding_idx).unsqueeze(-1), y, adapted)


def _adapted(port: Port, module: nn.Module, args: tuple, y: Tensor) -> Tensor:
    base = module.forward  # .forward skips hooks: the bare base
    if port.switch.rows:
        x = args[0]
        return by_row(port.parts(x), y, lambda a, rows: a.after(x[rows], y[rows], base))
    if line := port.switch.segments:
        return after_along(line, port, args[0], y, base)
    for name in port.switch.acting:
        if name in port and acts(port[name], "after"):  # type: ignore[arg-type]
            y = port.after_of(name, args[0], y, base)
    return y


def _enter(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    port: Port = module.adapters  # type: ignore[assignment]
    if port.switch.rows:
        options = attention.named(module, args, options)
        return (), enter_by_row(port.parts(inputs_of(options)), module, options)
    if acting := port.acting():
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
