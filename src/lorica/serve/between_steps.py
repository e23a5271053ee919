"""Calls that change the served model, run by the engine's thread between two steps."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class BetweenSteps:
    """`run` by any thread; `run_all` by the engine's thread. Before it starts, and after it has
    ended, calls run where they are made."""

    def __init__(self, changed: threading.Condition):
        """changed: notified when there is a call to run."""
        self._changed = changed
        self._calls: deque[tuple[Callable[[], object], Future]] = deque()
        self._owner: int | None = None

    def own(self) -> None:
        """Calls are run by this thread from now on."""
        with self._changed:
            self._owner = threading.get_ident()

    def disown(self) -> None:
        with self._changed:
            self._owner = None
        self.run_all()

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, or what it raised."""
        with self._changed:
            is_elsewhere = self._owner not in (None, threading.get_ident())
            future: Future[T] = Future()
            if is_elsewhere:
                self._calls.append((call, future))
                self._changed.notify()
        return future.result() if is_elsewhere else call()

    def __bool__(self) -> bool:
        """Whether calls wait."""
        return bool(self._calls)

    def run_all(self) -> None:
        while self._calls:
            call, future = self._calls.popleft()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
