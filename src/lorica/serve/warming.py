"""Loads adapters for answers that wait for them, on one thread.

Tenants take turns. An adapter that finds no room is tried again later, and does not hold up those
that fit. Of one tenant a few adapters are loaded ahead of its answers' slots, so that its queue
does not fill the memory.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from lorica.serve.residency import NoRoom
from lorica.serve.work import Work

PAUSE = 0.05
"""Seconds until those that found no room are tried again."""
MOST_AHEAD = 4
"""Adapters that are loaded for answers of one tenant that have no slot yet."""
log = logging.getLogger("lorica.serve")


class Warming:
    """on_ready, on_failed: called on its thread. patience: seconds that an adapter waits for room.

    clock: gives seconds, and never goes back.
    """

    def __init__(
        self,
        on_ready: Callable[[Work], object],
        on_failed: Callable[[Work, Exception], object],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._on_ready, self._on_failed = on_ready, on_failed
        self._patience, self._clock = patience, clock
        self._changed = threading.Condition()
        self._lines: dict[str, list[Work]] = {}  # by tenant; the first had no turn for longest
        self._ahead: dict[str, list[Work]] = {}  # loaded, and perhaps without a slot
        self._since: dict[Work, float] = {}  # when a work first found no room
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="lorica-adapters", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, works: Sequence[Work]) -> None:
        with self._changed:
            for work in works:
                self._lines.setdefault(work.ticket.tenant, []).append(work)
            self._changed.notify()

    def close(self) -> None:
        """End the thread, after the adapter that it loads."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def take_turns(self) -> bool:
        """Load one adapter of each tenant that waits. Returns: whether any left its line."""
        with self._changed:
            tenants = list(self._lines)
        return sum(self._take_turn(tenant) for tenant in tenants) > 0

    def _run(self) -> None:
        while not self._is_closing:
            progresses = False
            try:
                progresses = self.take_turns()
            except Exception:  # the thread goes on: all loads need it
                log.exception("an adapter's turn failed")
            with self._changed:
                if not progresses and not self._is_closing:
                    self._changed.wait(PAUSE if self._lines else None)

    def _take_turn(self, tenant: str) -> bool:
        """Try the adapters of a tenant, the oldest first, until one leaves the line."""
        with self._changed:
            works = list(self._lines[tenant])
        ahead = [work for work in self._ahead.get(tenant, ()) if work.ticket.state == "queued"]
        keys = {work.target.key for work in ahead}
        self._ahead[tenant] = ahead
        for work in works:
            is_wanted = work.ticket.state == "queued"
            if is_wanted and len(keys) >= MOST_AHEAD and work.target.key not in keys:
                continue
            if not is_wanted or self._load(work):
                self._leave(tenant, work)
                return True
        return False

    def _load(self, work: Work) -> bool:
        """Whether the work needs no further try: its adapter is loaded, or failed."""
        try:
            work.target.ensure(waits=False)
        except NoRoom as error:
            since = self._since.setdefault(work, self._clock())
            if self._clock() - since < self._patience:
                return False
            self._fail(work, error)
        except Exception as error:
            self._fail(work, error)
        else:
            self._ahead[work.ticket.tenant].append(work)
            self._on_ready(work)
        return True

    def _fail(self, work: Work, error: Exception) -> None:
        log.warning("an adapter could not be made resident: %s", error)
        self._on_failed(work, error)

    def _leave(self, tenant: str, work: Work) -> None:
        with self._changed:
            self._since.pop(work, None)
            self._lines[tenant].remove(work)
            if not self._lines[tenant]:
                del self._lines[tenant]
            if not self._ahead[tenant]:
                del self._ahead[tenant]
