"""The cloud's side of the split: run the blocks of the frozen base for one device."""

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
from lorica.training.split.connection import CLOUD, Connection


class RemoteUpdate(torch.autograd.Function):
    """The update s B A x of a layer, asked of the device; backward: its gradient to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, connection: Connection, site: str) -> Tensor:  # type: ignore[override]
        ctx.connection, ctx.site = connection, site
        connection.send("x", site, x=x)
        return connection.receive()[2]["update"].to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        ctx.connection.send("gradient", ctx.site, gradient=gradient)
        return ctx.connection.receive()[2]["x"].to(gradient), None, None


def serve(config: TrainConfig, peer: str) -> None:
    """Serve the base to a device until the device has ended its run.

    Raises: BaseError, ConfigError before a device connects; TrainingError if it goes away.
    """
    base = load(config.base, dtype=config.dtype)
    if base.labels is not None or not hasattr(base.model, "base_model"):
        raise ConfigError("a split run needs a causal language model.", fix="choose another base")
    connection = Connection(CLOUD, peer)
    try:
        connection.send(
            "base",
            {
                kind: fingerprint(base.model, path=config.base, hashing=kind).as_dict()
                for kind in get_args(Hashing)
            },
        )
        BlockServer(base.model, connection).serve()
    finally:
        connection.close()


class BlockServer:
    """Runs the decoder for the device; layers in `active` ask the device for their update."""

    def __init__(self, model: nn.Module, connection: Connection):
        self.model, self.connection = model, connection
        self.decoder: Any = model.base_model
        self.active: set[str] = set()
        self.hidden: Tensor | None = None
        for site in sites_of(model):
            site.module.register_forward_hook(self._hook(site.name))

    def serve(self) -> None:
        while True:
            kind, note, tensors = self.connection.receive()
            if kind == "forward":
                self._forward(note, tensors)
            elif kind == "backward":
                assert self.hidden is not None  # a device goes backward after forward
                self.hidden.backward(tensors["gradient"].to(self.hidden))
                self.hidden = None
                self.connection.send("done")
            else:
                return

    def _forward(self, note: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.active = set(note["active"])
        device = next(self.model.parameters()).device
        inputs: dict[str, Any] = {k: t.to(device) for k, t in tensors.items()}
        if note["lengths"]:
            inputs["row_lengths"] = note["lengths"]
        inputs["inputs_embeds"].requires_grad_(note["learning"])
        with (
            torch.set_grad_enabled(note["learning"]),
            packed(self.model) if note["lengths"] else nullcontext(),
        ):
            hidden = self.decoder(**inputs, use_cache=False).last_hidden_state
        self.hidden = hidden if note["learning"] else None
        self.connection.send("hidden", hidden=hidden)

    def _hook(self, site: str) -> Any:
        def add_update(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
            return (
                y + RemoteUpdate.apply(args[0], self.connection, site) if site in self.active else y
            )

        return add_update
