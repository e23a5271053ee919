"""The adapters that are resident at the layers of a served model, and which rows they act on.

A layer at which adapters have forms gets one plain hook. What has no form acts through the
adapter's own hooks and a route by row (core.route). Only the thread that runs the model calls
these: between its passes `add` and `remove`, around each pass `acting`.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.attach import activate, attach_built, detach
from lorica.core.bank import Bank, bank_of
from lorica.core.blocks import routing, without_gradients
from lorica.core.route import ByRow, Everywhere, Route
from lorica.core.site import PackedLayer, Site, sites_of
from lorica.errors import ConfigError
from lorica.serve.prepare import Prepared
from lorica.serve.site_stack import Keys, SiteStack, Update
from lorica.serve.stack_dtype import float32_rows

MAX_RECENT = 8
"""Batches whose updates are kept: those that prefill and decode by turns."""
KINDS = ("linear", "embedding", "other", "attention", "decoder")


class ServingBank:
    """resident: the bytes of each adapter, by its key. wide_rows: see stack_dtype."""

    def __init__(self, model: nn.Module):
        model.requires_grad_(False)
        self.model = model
        self.hooks: dict[str, SiteHook] = {}
        self.current: Acting | None = None
        self._recent: dict[Keys, Acting] = {}  # the last used is the last
        self._bytes: dict[str, int] = {}
        self.names: dict[str, str] = {}  # of adapters that act by hooks of their own
        self._sites = {site.name: site for site in sites_of(model, KINDS)}
        self._numbers = itertools.count()
        self.wide_rows = float32_rows([s for s in self._sites.values() if s.kind == "linear"])

    @property
    def resident(self) -> Mapping[str, int]:
        return MappingProxyType(self._bytes)

    def add(self, key: str, prepared: Prepared) -> int:
        """Make an adapter resident. Returns: its bytes. Raises: ConfigError if `key` is taken."""
        if key in self._bytes:
            raise ConfigError(f"an adapter with the key {key!r} is resident already.")
        self._recent.clear()
        self._bytes[key] = prepared.bytes
        try:
            if prepared.modules:
                self._attach(key, prepared)
            for name, form in prepared.forms.items():
                if name not in self.hooks:
                    self.hooks[name] = SiteHook(self, self._sites[name])
                self.hooks[name].stack.add(key, form)
        except BaseException:
            self.remove(key)
            raise
        return self._bytes[key]

    def remove(self, key: str) -> int:
        """Let an adapter go. Returns: the bytes freed.

        Raises: ConfigError if it is not resident.
        """
        self._check_resident([key])
        self._recent.clear()
        if (name := self.names.pop(key, None)) is not None:
            detach(self.model, name)
        for site, hook in list(self.hooks.items()):
            hook.stack.remove(key)
            if not hook.stack.forms:
                hook.handle.remove()
                del self.hooks[site]
        return self._bytes.pop(key)

    @contextmanager
    def acting(self, keys: Sequence[Hashable]) -> Iterator[None]:
        """Inside the block, row i of every batch has adapter keys[i]; None: the base model.

        Without gradients. Raises: ConfigError if an adapter is not resident.
        """
        acting = self._acting(tuple(keys))  # type: ignore[arg-type]
        before, self.current = self.current, acting
        try:
            with without_gradients(), acting.routed():
                yield
        finally:
            self.current = before

    def _acting(self, keys: Keys) -> "Acting":
        """The same object for as long as the batch is the same."""
        acting = self._recent.pop(keys, None)
        if acting is None:
            self._check_resident(keys)
            acting = Acting(keys, *self._route(keys))
        self._recent[keys] = acting
        if len(self._recent) > MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        return acting

    def _check_resident(self, keys: Sequence[str | None]) -> None:
        missing = [key for key in keys if key is not None and key not in self._bytes]
        if missing:
            raise ConfigError(f"no adapter with the key {missing[0]!r} is resident.")

    def _attach(self, key: str, prepared: Prepared) -> None:
        """Attach the modules of an adapter to the model, where they act on no row yet."""
        name = f"served_{next(self._numbers)}"
        built = []
        for site_name, adapter in prepared.modules.items():
            site = replace(self._sites[site_name])
            adapter.move_to(site)
            built.append((site, adapter))
        attach_built(self.model, prepared.spec, name, built)
        activate(self.model)
        self.names[key] = name

    def _route(self, keys: Keys) -> tuple[Bank | None, Route | None]:
        """The route of the adapters that act by hooks of their own; None: no row has one."""
        names = [None if key is None else self.names.get(key) for key in keys]
        distinct = {name for name in names if name is not None}
        if not distinct:
            return None, None
        if len(distinct) == 1 and None not in names:
            return bank_of(self.model), Everywhere.of(distinct)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return bank_of(self.model), ByRow.of(names, device)


class Acting:
    """The adapters of the rows of a pass, and what they do at each layer, computed at its first
    call.

    bank, route: of those that act by hooks of their own; None: there are none.
    """

    def __init__(self, keys: Keys, bank: Bank | None, route: Route | None):
        self.keys, self.bank, self.route = keys, bank, route
        self.updates: dict[str, Update | None] = {}

    def routed(self) -> AbstractContextManager[None]:
        return nullcontext() if self.route is None else routing(self.bank, self.route)

    @property
    def is_paused(self) -> bool:
        """An adapter makes a call of the model for itself, which has none of the rows."""
        return self.bank is not None and self.bank.current is not self.route


class SiteHook:
    """The forward hook of one layer.

    overwrites: the layer's output is a new tensor, and can be overwritten.
    """

    def __init__(self, bank: ServingBank, site: Site):
        self.bank, self.name = bank, site.name
        self.stack = SiteStack(site.name, bank.wide_rows)
        self.overwrites = (
            type(site.module) is nn.Linear
            or site.transposed
            or isinstance(site.module, PackedLayer)
        )
        self.handle = site.module.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], y: Tensor
    ) -> Tensor | None:
        acting = self.bank.current
        if acting is None or acting.is_paused:
            return None
        if self.name not in acting.updates:
            acting.updates[self.name] = self.stack.update(acting.keys)
        update = acting.updates[self.name]
        if update is None:
            return None
        if not (self.overwrites and y.is_contiguous()):
            y = y.clone(memory_format=torch.contiguous_format)
        update(args[0] if args else next(iter(options.values())), y)
        return y

    def __deepcopy__(self, memo: object) -> object:
        """A copy of the model is not served."""
        return _no_hook


def _no_hook(*args: object) -> None:
    return None
