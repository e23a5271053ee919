"""Templates are programs of others: for requests they are rendered with a limit on their time.

A template that was stopped once may be slow again, so from then on it is rendered by another
process: it keeps waiting only others of its kind.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lorica.data.template_worker import Compiled, Overrun, Worker

T = TypeVar("T")
SECONDS = 1
"""Of processor time for one rendering; the kernel counts whole seconds, so it may be up to 2."""
MEMORY = 2**28
PATIENCE = 10.0


class Stopped(Exception):
    """A template took too much time or memory for a request."""


class ServedTemplates:
    """See `template_worker.rendering_by`. Thread-safe."""

    def __init__(self) -> None:
        self._quick, self._slow = (Worker(SECONDS, MEMORY, PATIENCE) for _ in range(2))
        self._stopped: set[str] = set()

    def compile(self, source: str) -> Compiled:
        return self._call(source, lambda worker: worker.compile(source))

    def render(
        self, source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """As `Worker.render`. Raises: Stopped."""
        return self._call(source, lambda worker: worker.render(source, shared, jobs))

    def close(self) -> None:
        self._quick.close()
        self._slow.close()

    def _call(self, source: str, call: Callable[[Worker], T]) -> T:
        try:
            return call(self._slow if source in self._stopped else self._quick)
        except Overrun as error:
            self._stopped.add(source)
            raise Stopped(str(error)) from None
