"""Frozen weights that wait outside the memory of the device until a layer needs them.

    on a CPU        disk   weights stay mapped to the files of the base. The pages of a layer are
                           released after its forward pass, and after its backward pass
    on an           disk   the same, and blocks are copied to the accelerator for their passes
    accelerator     cpu    blocks wait in pinned memory; see base/offload_blocks.py

Nothing is written back: the base is frozen. What is trained (adapters, modules_to_save) stays on
the device, and so do the weights outside of the blocks on an accelerator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorica.base.describe import dtype_of_base
from lorica.base.mapped_memory import is_mapped, mapped_weights, release_pages
from lorica.base.offload_blocks import BlockOffload
from lorica.errors import BaseError, ConfigError, listed

OFFLOAD = "offload_of_base"
"""The attribute of a model that keeps its `Offload`."""


class Offload(Protocol):
    """What a model needs while its weights wait elsewhere.

    waiting: the identities of the parameters that `to_device` leaves where they are.
    """

    waiting: set[int]

    def begin(self) -> None:
        """Act on every pass from now on, after the hooks that the model has."""
        ...

    def end(self) -> None:
        """Act no more; the weights stay where they wait."""
        ...


class DiskOffload:
    """Weights are read from their mapped files for each pass, and released after it. CPU only."""

    waiting: set[int]

    def __init__(self, model: nn.Module):
        self.model, self.waiting = model, set()
        self.remove: Callable[[], None] = lambda: None

    def begin(self) -> None:
        self.remove()  # the hooks of adapters must come first: theirs may read the weights
        self.remove = _release_by_layer(self.model)

    def end(self) -> None:
        self.remove()


@contextmanager
def released_after_use(model: nn.Module) -> Iterator[None]:
    """Release the mapped pages of each layer's weights after its forward pass, and its backward.

    A later pass reads them from the file again. Weights that are not mapped are left alone.
    """
    end = _release_by_layer(model)
    try:
        yield
    finally:
        end()


def _release_by_layer(model: nn.Module) -> Callable[[], None]:
    """Register the hooks of `released_after_use`. Returns: a function that removes them."""
    ranges, handles = mapped_weights(), []

    def release(module: nn.Module, args: tuple = (), _: Any = None) -> None:
        for parameter in module._parameters.values():
            if parameter is not None:
                release_pages(parameter, ranges)
        if args and isinstance(args[0], Tensor) and args[0].requires_grad:
            # Once the gradient of the input is there, the backward pass has used the weight.
            args[0].register_hook(lambda _: release(module))

    for module in model.modules() if ranges else ():
        if any(p is not None and is_mapped(p, ranges) for p in module._parameters.values()):
            handles.append(module.register_forward_hook(release, always_call=True))

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def check_offload(
    path: str, dtype: str, quantisation: str | None, offload: str | None, *, on_cpu: bool
) -> None:
    """Refuse an offload that cannot be, before weights are read.

    quantisation: of the base. on_cpu: the run has no accelerator.
    Raises: ConfigError, with the setting that fixes it.
    """
    if offload is None:
        return
    if offload not in ("cpu", "disk"):
        raise ConfigError(f"offload is {offload!r}.", known="cpu, disk")
    if quantisation is not None:
        raise ConfigError(
            f"offload is {offload}, and {path} is quantised as {quantisation}: its packed weights "
            "are in memory.",
            fix="leave one of the two out",
        )
    if not on_cpu:
        return
    if offload == "cpu":
        raise ConfigError(
            "offload is cpu, and there is no accelerator: the weights are in the memory of the CPU "
            "already.",
            fix="--offload disk leaves them in their files; or leave offload out",
        )
    if (own := dtype_of_base(path)) != dtype:
        raise ConfigError(
            f"offload is disk and dtype {dtype}, and the files of {path} are in {own}: converted "
            "weights are in no file.",
            fix=f"--dtype auto, which is {own} here",
        )


def start_offload(model: nn.Module, path: str, device: torch.device | None, offload: str) -> None:
    """Let the frozen weights of a loaded base wait until they are needed. In place.

    device: the accelerator; None: the model computes on the CPU.
    Raises: BaseError if its weights are not mapped to files.
    """
    foreign: Any = model
    ranges = mapped_weights()
    if device is not None:
        own = BlockOffload(model, device, pinned=offload == "cpu", ranges=ranges)
    else:
        sizes = {n: p.nbytes for n, p in model.named_parameters() if not is_mapped(p, ranges)}
        if 2 * sum(sizes.values()) > sum(p.nbytes for p in model.parameters()):
            raise BaseError(
                f"offload is disk, and most weights of {path} are not mapped to its files: "
                "transformers converts them, or the system does not map them.",
                weights=listed(sorted(sizes)),
                fix="leave offload out",
            )
        own = DiskOffload(model)
    setattr(foreign, OFFLOAD, own)
    # Every process reads the same files, so DDP need not broadcast them, which would write to all.
    foreign._ddp_params_and_buffers_to_ignore = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in own.waiting or is_mapped(parameter, ranges)
    ]


def end_offload(model: nn.Module) -> None:
    """Leave the weights that wait where they are, for what moves them next. In place."""
    own: Offload | None = getattr(model, OFFLOAD, None)
    if own is not None:
        own.end()
        delattr(model, OFFLOAD)


def place_adapters(model: nn.Module) -> None:
    """Move what was added to a base whose weights wait to where it computes. In place."""
    to_device(model, next(model.parameters()).device)  # the embedding, which never waits


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to `device`, except the weights that wait elsewhere. In place."""
    own: Offload | None = getattr(model, OFFLOAD, None)
    if own is None:
        return model.to(device)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in own.waiting:
                parameter.data = parameter.data.to(device)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
    own.begin()
    return model
