"""Answers in the making: the engine's thread puts pieces in, an event loop takes them out.

A step of the decoder gives a token to many answers. `wake` wakes each event loop once for all of
them, because a wake-up costs about as much as a token of a small model.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Self

from lorica.serve.exchange import End, Piece, Served


class StreamedAnswer:
    """An `Answer`: pieces, then one End. `put` is for the engine's thread alone."""

    def __init__(self, served: Served, cancel: Callable[[Self], object]):
        self.served = served
        self._cancel = cancel
        self._events: deque[Piece | End] = deque()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self) -> None:
        self._cancel(self)

    def put(self, event: Piece | End) -> None:
        """Append an event. Whoever waits for it is woken by `wake`."""
        self._events.append(event)

    async def __aiter__(self) -> AsyncIterator[Piece | End]:
        changed = asyncio.Event()
        self._waiting = asyncio.get_running_loop(), changed
        while True:
            changed.clear()
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, End):
                    return
            await changed.wait()

    @property
    def waiting(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Event] | None:
        """The loop that reads this answer, and what wakes it; None: nobody does yet."""
        return self._waiting


def wake(answers: Iterable[StreamedAnswer]) -> None:
    """Wake whoever waits for one of `answers`: one call for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for answer in answers:
        if answer.waiting is not None:
            loop, changed = answer.waiting
            by_loop.setdefault(loop, []).append(changed)
    for loop, events in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
