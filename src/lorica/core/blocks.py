"""Which adapters act inside a block (`use`, `mixed`), in the thread and task that opened it alone.

The innermost block wins. What is trained (`activate`, and the segments of a packed batch) belongs
to the model instead: under activation checkpointing the backward pass runs the forward pass again,
on a GPU in a thread of its own. Blocks have no gradients, and need not be seen there.

torch.compile cannot trace a ContextVar, and guards on what a thread keeps; so it is kept twice.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Choice:
    """names: adapters, applied in this order. rows: a name (None: the base) for each row of a
    batch instead; see core.mixed."""

    names: tuple[str, ...] = ()
    rows: tuple[str | None, ...] | None = None


@dataclass(eq=False)
class Block:
    """A block over the model of `switch`. choice: None after `activate` inside the block."""

    switch: object
    choice: Choice | None


_BLOCKS: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())
_OF_THREAD = threading.local()


def innermost(switch: object) -> Block | None:
    """The innermost open block over the model of `switch`; None: there is none."""
    blocks = getattr(_OF_THREAD, "blocks", ()) if torch.compiler.is_compiling() else _BLOCKS.get()
    for block in blocks[::-1]:
        if block.switch is switch:
            return block
    return None


@contextmanager
def choosing(switch: object, choice: Choice) -> Iterator[None]:
    """Inside the block `choice` acts in the model of `switch`, for this thread and task."""
    before = _BLOCKS.get()
    _set((*before, Block(switch, choice)))
    try:
        yield
    finally:
        _set(before)


def _set(blocks: tuple[Block, ...]) -> None:
    _BLOCKS.set(blocks)
    _OF_THREAD.blocks = blocks
