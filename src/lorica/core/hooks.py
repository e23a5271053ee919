"""The hooks of an adapted layer. Each reads the current route, and hands the work to its adapters.

They are module-level functions, so adapted models can be deep-copied, compiled, checkpointed and
sharded like any other.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core import attention
from lorica.core.bank import ExpertAdapters, LayerAdapters
from lorica.core.route import ByRow, Everywhere, Route
from lorica.core.row_fronts import enter_by_row, inputs_of
from lorica.core.site import ADAPTERS, Site
from lorica.errors import ConfigError


def hook_layer(site: Site) -> tuple:
    """Register the hooks of a site. In place. What acts inside attention is called from there."""
    module = site.module
    if site.kind == "attention":
        return ()
    if site.kind == "decoder":
        return (module.register_forward_pre_hook(_enter, with_kwargs=True),)
    if site.kind == "expert":
        return (AdaptedForward(module),)
    return (
        module.register_forward_pre_hook(_before, with_kwargs=True),
        module.register_forward_hook(_after),
        module.register_forward_hook(_restore, always_call=True),
    )


def _before(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    adapters: LayerAdapters = module.adapters  # type: ignore[assignment]
    adapters.hold_layer()
    if not args and adapters.kind in ("linear", "embedding"):
        args, options = _by_position(module, options)
    route = adapters.model_bank.current
    _replace(module, adapters, route)
    return (adapters.adapt_input(route, args[0]), *args[1:]) if args else args, options


def _after(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
    adapters: LayerAdapters = module.adapters  # type: ignore[assignment]
    x = args[0] if args else y  # a layer that is called by keywords has no adapter that reads x
    adapted = adapters.adapt_output(adapters.model_bank.current, x, y, module.forward)  # no hooks
    if adapters.padding_idx is None or adapted is y:
        return adapted
    return torch.where((x == adapters.padding_idx).unsqueeze(-1), y, adapted)


def _enter(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
    adapters: LayerAdapters = module.adapters  # type: ignore[assignment]
    route = adapters.model_bank.current
    if isinstance(route, ByRow):
        options = attention.arguments_by_name(module, args, options)
        inputs = inputs_of(options)
        route.split(inputs, adapters.site_name)  # the batch has the rows that are named
        named = zip(route.segments, route.rows, strict=True)
        own = [(adapters.adapters_named(s.adapters), rows.to(inputs.device)) for s, rows in named]
        parts = [(adapter, rows) for group, rows in own for adapter in group]
        return (), enter_by_row(parts, module, options)
    if acting := adapters.adapters_named(route.names):
        args, options = (), attention.arguments_by_name(module, args, options)
        for adapter in acting:
            options = adapter.enter(module, options)
    return args, options


def _by_position(module: nn.Module, options: dict) -> tuple[tuple, dict]:
    """A call by keywords alone, with its first argument by position: the hooks read it there."""
    first = next(iter(inspect.signature(module.forward).parameters), None)
    if first not in options:
        return (), options
    return (options[first],), {key: value for key, value in options.items() if key != first}


def _replace(module: nn.Module, adapters: LayerAdapters, route: Route) -> None:
    """Put the tensors of adapters in place of the layer's own, until `_restore`."""
    if not isinstance(route, Everywhere):
        return  # adapters that replace tensors act on all tokens, and are refused elsewhere
    for adapter in adapters.adapters_named(route.names):
        for key, tensor in adapter.weights(module).items():
            tensors = _tensors(module, key)
            adapters.replaced_tensors.setdefault(key, tensors[key])
            tensors[key] = tensor


class AdaptedForward:
    """The forward pass of a module of experts while it has adapters, and the handle to remove it.

    No hook can do it: an update lies between the two products of the module.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        layers: ExpertAdapters = module.adapters  # type: ignore[assignment]
        if len(layers) == 1:  # the first adapted parameter
            module.forward = partial(_run_experts, module, module.__dict__.get("forward"))

    def remove(self) -> None:
        layers: ExpertAdapters = self.module.adapters  # type: ignore[assignment]
        ours = self.module.__dict__.get("forward")
        if len(layers) > 1 or getattr(ours, "func", None) is not _run_experts:
            return  # others adapt it too; or a library has wrapped it since, and calls it
        del self.module.__dict__["forward"]
        if (before := ours.args[1]) is not None:  # type: ignore[union-attr]
            self.module.forward = before


def _run_experts(
    module: nn.Module, wrapped: Callable[..., Any] | None, *inputs: Any, **options: Any
) -> Any:
    """The forward pass of a module of experts with the adapters that act.

    wrapped: what the module had in place of its class's forward pass; None: nothing.
    Raises: ConfigError if rows or segments have adapters of their own: which rows the tokens of an
    expert come from is not known.
    """
    layers: Any = module._modules.get(ADAPTERS)
    forward = wrapped or partial(type(module).forward, module)
    if layers is None:  # they were detached, and a library calls this still
        return forward(*inputs, **options)
    stacks: dict[str, LayerAdapters] = dict(layers.items())
    route = next(iter(stacks.values())).model_bank.current
    named = {key: own.adapters_named(route.names) for key, own in stacks.items()}
    acting = {key: adapters for key, adapters in named.items() if adapters}
    if not acting:
        return forward(*inputs, **options)
    if not isinstance(route, Everywhere):
        raise ConfigError(
            f"the adapter of the experts {stacks[next(iter(acting))].site_name} acts on all rows "
            "of a batch.",
            fix="run its rows in a batch of their own",
        )
    kinds = {type(adapter) for adapters in acting.values() for adapter in adapters}
    alone = len(kinds) == 1 and all(len(own) == 1 for own in acting.values())
    if alone and not options and wrapped is None:
        single = {key: adapter for key, (adapter,) in acting.items()}
        if (y := kinds.pop().run_experts(module, single, inputs)) is not None:
            return y
    try:
        for own in stacks.values():
            own.hold_layer()
            _replace(module, own, route)
        return forward(*inputs, **options)
    finally:
        for own in stacks.values():
            _put_back(module, own)


def _restore(module: nn.Module, args: tuple, y: object) -> None:
    """Put the layer's own tensors back; runs also when the layer raised."""
    _put_back(module, module.adapters)  # type: ignore[arg-type]


def _put_back(module: nn.Module, adapters: LayerAdapters) -> None:
    for key, tensor in adapters.replaced_tensors.items():
        _tensors(module, key)[key] = tensor
    adapters.replaced_tensors.clear()
    adapters.release_layer()


def _tensors(module: nn.Module, key: str) -> dict[str, Any]:
    """Where the layer keeps its tensor `key`: among its parameters, or the codes of packed layers
    among its buffers."""
    return module._parameters if key in module._parameters else module._buffers
