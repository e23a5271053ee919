"""Compute a model whose weights are mapped files without holding them all in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lorica.base.mapped_memory import mapped_weights, release_pages


@contextmanager
def released_after_use(model: nn.Module) -> Iterator[None]:
    """Release the mapped pages of each layer's weights after its forward pass.

    A later pass reads them from the file again. Weights that are not mapped are left alone.
    """
    ranges, handles = mapped_weights(), []

    def release(module: nn.Module, *_: Any) -> None:
        for parameter in module._parameters.values():
            if parameter is not None:
                release_pages(parameter, ranges)

    for module in model.modules() if ranges else ():
        if any(p is not None for p in module._parameters.values()):
            handles.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
