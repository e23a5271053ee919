"""The blocks of a frozen base wait on the CPU, and are on the accelerator for their passes.

While a block computes, the next one is copied: in the forward pass the one after it, in the
backward pass the one before it. With pinned memory and a stream of its own, the copy overlaps the
computation. At most two blocks are on the accelerator.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from lorica.base.frozen_product import keep_parameters
from lorica.base.mapped_memory import release_pages
from lorica.core.site import blocks_of

Waiting = list[tuple[nn.Parameter, Tensor]]
"""A parameter of a block, and its values on the CPU."""


class BlockOffload:
    """Copies blocks to `device` and lets them go.

    pinned: keep the waiting weights in pinned memory, not in their mapped files.
    ranges: addresses of mapped files, whose pages are released after each copy.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        pinned: bool,
        ranges: Sequence[tuple[int, int]] = (),
    ):
        self.blocks = list(blocks_of(model).values())
        self.device, self.ranges = device, list(ranges)
        self.kept: list[Waiting] = []
        for block in self.blocks:
            keep_parameters(block)
            own = list(block.parameters())
            for parameter in own if pinned and device.type != "cpu" else ():
                parameter.data = parameter.data.pin_memory()
            self.kept.append([(parameter, parameter.data) for parameter in own])
        self.waiting = {id(parameter) for kept in self.kept for parameter, _ in kept}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copies: dict[int, list[Tensor]] = {}
        self.backward: set[int] = set()
        """Blocks in their backward pass; one may run its forward pass again in it."""
        self.handles: list[Any] = []

    def begin(self) -> None:
        """Act on every pass from now on, after the hooks that the blocks have."""
        for handle in self.handles:
            handle.remove()
        self.handles = [
            handle
            for i, block in enumerate(self.blocks)
            for handle in (
                block.register_forward_pre_hook(self._hook(self._before, i), prepend=True),
                block.register_forward_hook(self._hook(self._after, i), always_call=True),
            )
        ]

    def end(self) -> None:
        """Act no more: the blocks stay on the CPU, for whatever moves them next."""
        for handle in self.handles:
            handle.remove()
        self._end_backward()

    def _hook(self, act: Callable[..., None], i: int) -> Callable[..., None]:
        return lambda block, args, *output: act(i, *output)

    def _before(self, i: int) -> None:
        if i in self.backward:  # activation checkpointing: it is there
            return
        self._bring(i)
        self._copy(i + 1)

    def _after(self, i: int, output: Any) -> None:
        if i in self.backward:
            return
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(partial(self._begin_backward, i))
        self._let_go(i)

    def _begin_backward(self, i: int, _: Tensor) -> None:
        if not self.backward:
            Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[attr-defined]
        for later in [k for k in self.backward if k > i]:
            self.backward.discard(later)
            self._let_go(later)
        self.backward.add(i)
        self._bring(i)
        self._copy(i - 1)

    def _end_backward(self) -> None:
        self.backward.clear()
        for i in list(self.copies):
            self._let_go(i)

    def _copy(self, i: int) -> None:
        """Begin to copy a block to the device, unless it is there."""
        if not 0 <= i < len(self.blocks) or i in self.copies:
            return
        with self._side():
            self.copies[i] = [
                kept.to(self.device, non_blocking=True, copy=True) for _, kept in self.kept[i]
            ]
        for _, kept in self.kept[i]:
            release_pages(kept, self.ranges)  # a copy from memory that is not pinned has ended

    def _bring(self, i: int) -> None:
        """Let a block compute on the device, once its copy is whole."""
        self._copy(i)
        if self.stream is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self.stream)
            for copy in self.copies[i]:
                copy.record_stream(now)  # the memory is not used anew before the block is done
        for (parameter, _), copy in zip(self.kept[i], self.copies[i], strict=True):
            parameter.data = copy

    def _let_go(self, i: int) -> None:
        for parameter, kept in self.kept[i]:
            parameter.data = kept
        self.copies.pop(i, None)

    def _side(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
