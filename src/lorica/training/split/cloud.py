"""The cloud's side of the split: the frozen base, for one device at a time."""

from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lorica.base.fingerprint import Hashing, fingerprint
from lorica.base.load import load
from lorica.base.packing import packed
from lorica.core.site import sites_of
from lorica.errors import ConfigError
from lorica.training.config import TrainConfig
from lorica.training.split.wire import CLOUD, Wire


class Remote(torch.autograd.Function):
    """s B A x of one site, asked of the device; in the backward pass, its gradient to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, site: str) -> Tensor:  # type: ignore[override]
        ctx.wire, ctx.site = wire, site
        wire.send("x", site, x=x)
        return wire.receive()[2]["update"].to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        ctx.wire.send("gradient", ctx.site, gradient=gradient)
        return ctx.wire.receive()[2]["x"].to(gradient), None, None


def serve(config: TrainConfig, peer: str) -> None:
    """Run the base for a device until the device has ended its run.

    Raises: BaseError, ConfigError before a device connects; TrainingError if it goes away.
    """
    base = load(config.base, dtype=config.dtype)
    if base.labels is not None or not hasattr(base.model, "base_model"):
        raise ConfigError("a split run needs a causal language model.", fix="choose another base")
    wire = Wire(CLOUD, peer)
    try:
        wire.send(
            "base",
            {
                kind: fingerprint(base.model, path=config.base, hashing=kind).as_dict()
                for kind in get_args(Hashing)
            },
        )
        Blocks(base.model, wire).serve()
    finally:
        wire.close()


class Blocks:
    """The base while it serves: its decoder, and which sites ask the device for an update."""

    def __init__(self, model: nn.Module, wire: Wire):
        self.model, self.wire = model, wire
        self.decoder: Any = model.base_model
        self.active: set[str] = set()
        self.hidden: Tensor | None = None
        for site in sites_of(model):
            site.module.register_forward_hook(self._asking(site.name))

    def serve(self) -> None:
        while True:
            kind, note, tensors = self.wire.receive()
            if kind == "forward":
                self._forward(note, tensors)
            elif kind == "backward":
                assert self.hidden is not None  # a device asks for what it has had
                self.hidden.backward(tensors["gradient"].to(self.hidden))
                self.hidden = None
                self.wire.send("done")
            else:
                return

    def _forward(self, note: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.active = set(note["active"])
        device = next(self.model.parameters()).device
        given: dict[str, Any] = {k: t.to(device) for k, t in tensors.items()}
        if note["lengths"]:
            given["row_lengths"] = note["lengths"]
        given["inputs_embeds"].requires_grad_(note["learning"])
        with (
            torch.set_grad_enabled(note["learning"]),
            packed(self.model) if note["lengths"] else nullcontext(),
        ):
            hidden = self.decoder(**given, use_cache=False).last_hidden_state
        self.hidden = hidden if note["learning"] else None
        self.wire.send("hidden", hidden=hidden)

    def _asking(self, site: str) -> Any:
        def ask(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
            return y + Remote.apply(args[0], self.wire, site) if site in self.active else y

        return ask
