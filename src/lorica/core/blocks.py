"""The route inside a block (`use`, `mixed`), for the thread and task that opened it alone.

The innermost block wins. The route of a training step belongs to the model instead: under
activation checkpointing the backward pass runs the forward pass again, on a GPU in another thread.
Blocks have no gradients, and no backward pass needs to see them.

torch.compile cannot trace a ContextVar, but it guards on a thread-local value, so both are set.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from lorica.core.route import Route


@dataclass(eq=False)
class Block:
    """A block over the model of `bank`; None: it was left, and acts nowhere.

    route: None after `activate` inside the block.
    """

    bank: object | None
    route: Route | None


_BLOCKS: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())


class _OfThread(threading.local):
    """blocks: those that are open in this thread. paused: of `without_gradients`, in order."""

    def __init__(self) -> None:
        self.blocks: tuple[Block, ...] = ()
        self.paused: list[_Paused] = []


_OF_THREAD = _OfThread()


def innermost(bank: object) -> Block | None:
    """The innermost open block over the model of `bank`; None: there is none."""
    blocks = _OF_THREAD.blocks if torch.compiler.is_compiling() else _BLOCKS.get()
    for block in blocks[::-1]:
        if block.bank is bank:
            return block
    return None


@contextmanager
def routing(bank: object, route: Route) -> Iterator[None]:
    """Inside the block `route` holds in the model of `bank`, for this thread and task.

    Blocks may be left in any order, as generators leave theirs when they are closed.
    """
    block = Block(bank, route)
    _set((*_BLOCKS.get(), block))
    try:
        yield
    finally:
        block.bank = None  # a copy of the context, or another thread, may still hold the block
        _set(tuple(open_block for open_block in _BLOCKS.get() if open_block.bank is not None))


@dataclass(eq=False)
class _Paused:
    """Gradients are off; `before`: whether they were on."""

    before: bool


@contextmanager
def without_gradients() -> Iterator[None]:
    """As torch.no_grad, for blocks that may be left in any order.

    torch.no_grad puts back what it saw when it began: of two that are left in the order in which
    they were entered, the second would turn gradients off for ever.
    """
    paused, stack = _Paused(torch.is_grad_enabled()), _OF_THREAD.paused
    stack.append(paused)
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        later = stack[stack.index(paused) + 1 :]
        stack.remove(paused)
        if later:
            later[0].before = paused.before
        elif (
            stack is _OF_THREAD.paused
        ):  # not closed by another thread, whose gradients are its own
            torch.set_grad_enabled(paused.before)


def _set(blocks: tuple[Block, ...]) -> None:
    _BLOCKS.set(blocks)
    _OF_THREAD.blocks = blocks
