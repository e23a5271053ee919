"""Which adapters are in the bank: counted uses, a budget in bytes, and who leaves first.

A form is what the bank holds under one key: an adapter, or one condition of it. It stays while a
live generation owns it or a lease holds it. One that no lease holds may be evicted, the least
recently used first; it is prepared again when it is needed.

`add` and `remove` may block until the engine has run them between two steps. They are called
without a lock, and `remove` on a thread of its own, so that the engine's thread can release leases.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from lorica.errors import ResourceError
from lorica.serve.refusals import Unavailable


class NoRoom(Unavailable):
    """The memory for adapters is full of those that cannot leave now."""

    def __init__(self) -> None:
        super().__init__(
            "the memory for adapters is full of those that are answering or pinned.",
            fix="ask again later",
            retry_after=5.0,
        )


class Sized(Protocol):
    """What `prepare` gives: ready to be added to the bank."""

    @property
    def bytes(self) -> int: ...


@dataclass(eq=False)
class _Form:
    """owners: live generations. pins: owners that forbid eviction. leases: streams and loads.

    bytes: in the bank, or reserved for it. size: bytes that it took last; None: it was never
    prepared. used: grows with each use.
    """

    key: str
    state: Literal["absent", "adding", "resident", "removing"] = "absent"
    owners: int = 0
    pins: int = 0
    leases: int = 0
    bytes: int = 0
    size: int | None = None
    used: int = 0


class Residency:
    """budget: bytes in the bank at most; None: no limit. patience: seconds to wait for room.

    loads, evictions: since the start. load_seconds: of the latest loads.
    """

    def __init__(
        self,
        add: Callable[[str, Any], int],
        remove: Callable[[str], int],
        *,
        budget: int | None = None,
        patience: float = 30.0,
    ):
        self._add, self._remove = add, remove
        self.budget, self.patience = budget, patience
        self.evictions, self.loads = 0, 0
        self.load_seconds: deque[float] = deque(maxlen=100)
        self._changed = threading.Condition()
        self._forms: dict[str, _Form] = {}
        self._uses = count(1)
        self._removals: SimpleQueue[_Form | None] = SimpleQueue()
        self._remover = threading.Thread(
            target=self._run_removals, name="lorica-evictions", daemon=True
        )
        self._remover.start()

    # -- quick, on any thread -----------------------------------------------------------------

    def own(self, key: str, *, pinned: bool) -> None:
        """A live generation needs `key`."""
        with self._changed:
            form = self._forms.setdefault(key, _Form(key))
            form.owners += 1
            form.pins += pinned

    def disown(self, key: str, *, pinned: bool) -> int:
        """The generation has gone, which had pinned `key` or not.

        Returns: the bytes that leave the bank with it: see `wait_until_removed`.
        """
        with self._changed:
            form = self._forms[key]
            form.owners -= 1
            form.pins -= pinned
            self._remove_if_unused(form)
            return form.bytes if form.state == "removing" else 0

    def pin(self, key: str, pinned: bool) -> None:
        """An owner forbids eviction from now on, or allows it again."""
        with self._changed:
            self._forms[key].pins += 1 if pinned else -1
            self._changed.notify_all()

    def lease(self, key: str) -> None:
        with self._changed:
            form = self._forms.setdefault(key, _Form(key))
            form.leases += 1
            form.used = next(self._uses)

    def release(self, key: str) -> None:
        with self._changed:
            form = self._forms[key]
            form.leases -= 1
            form.used = next(self._uses)
            self._remove_if_unused(form)
            self._changed.notify_all()  # for those who wait for room

    def is_resident(self, key: str) -> bool:
        with self._changed:
            return key in self._forms and self._forms[key].state == "resident"

    def bytes_of(self, key: str) -> int:
        """Bytes of `key` in the bank."""
        with self._changed:
            form = self._forms.get(key)
            return form.bytes if form is not None and form.state != "adding" else 0

    @property
    def total(self) -> int:
        """Bytes in the bank, or reserved for what is being added."""
        with self._changed:
            return self._total()

    # -- may block: not on the engine's thread ------------------------------------------------

    def ensure(self, key: str, prepare: Callable[[], Sized], *, waits: bool = True) -> None:
        """Put `key` into the bank, unless it is in it, or no lease on it is left: the request that
        waited for it was cancelled.

        waits: for room, up to `patience`. Raises: NoRoom; what `prepare` raises.
        """
        form = self._begin_adding(key, waits)
        if form is None:
            return
        began = time.monotonic()
        try:
            if not waits and form.size is not None:  # else it is prepared in vain, time and again
                self._reserve(form, form.size, waits)
            prepared = prepare()
            self._reserve(form, prepared.bytes, waits)
            added = self._add(key, prepared)
        except BaseException:
            self._end_adding(form, "absent", 0)
            raise
        with self._changed:
            self.loads += 1
            self.load_seconds.append(time.monotonic() - began)
        self._end_adding(form, "resident", added)

    def wait_until_removed(self, key: str) -> None:
        """Wait while `key` is on its way out of the bank."""
        with self._changed:
            form = self._forms.get(key)
            while form is not None and form.state == "removing":
                self._changed.wait()

    def close(self) -> None:
        """End the thread that removes, after what it has to do."""
        self._removals.put(None)
        self._remover.join()

    # -- inside -------------------------------------------------------------------------------

    def _begin_adding(self, key: str, waits: bool) -> _Form | None:
        """The form to add; None: there is nothing to do. Raises: NoRoom if it is on its way into
        the bank, or out of it, and `waits` is false."""
        with self._changed:
            form = self._forms.get(key)
            while form is not None and form.state in ("adding", "removing"):
                if not waits:
                    raise NoRoom
                self._changed.wait()
            if form is None or form.state == "resident" or not form.leases:
                return None
            form.state = "adding"
            return form

    def _end_adding(self, form: _Form, state: Literal["absent", "resident"], size: int) -> None:
        with self._changed:
            form.state, form.bytes = state, size
            self._remove_if_unused(form)
            self._changed.notify_all()

    def _reserve(self, form: _Form, size: int, waits: bool) -> None:
        """Wait until there is room for `size` bytes, and evict what may leave. Raises: NoRoom,
        ResourceError."""
        with self._changed:
            form.bytes, form.size = 0, size
            if self.budget is not None and size > self.budget:
                raise ResourceError(
                    f"the adapter takes {size:,} bytes, and all adapters may take {self.budget:,}.",
                    fix="give adapters more memory",
                )
            until = time.monotonic() + (self.patience if waits else 0.0)
            while self.budget is not None and self._total() + size > self.budget:
                self._evict(self._total() + size - self.budget)
                # What leaves is waited for; that streams end may take longer than is reasonable.
                leaves = any(other.state == "removing" for other in self._forms.values())
                if not self._changed.wait(None if leaves else until - time.monotonic()):
                    raise NoRoom
            form.bytes = size

    def _evict(self, excess: int) -> None:
        """Begin to remove what was not used for longest, if that can free `excess` bytes."""
        forms = self._forms.values()
        excess -= sum(form.bytes for form in forms if form.state == "removing")
        idle = [f for f in forms if f.state == "resident" and not f.leases and not f.pins]
        if sum(form.bytes for form in idle) < excess:
            return
        for form in sorted(idle, key=lambda form: form.used):
            if excess <= 0:
                return
            excess -= form.bytes
            self.evictions += 1
            self._begin_removing(form)

    def _total(self) -> int:
        return sum(form.bytes for form in self._forms.values())

    def _remove_if_unused(self, form: _Form) -> None:
        if form.owners or form.leases:
            return
        if form.state == "resident":
            self._begin_removing(form)
        elif form.state == "absent":
            self._forms.pop(form.key, None)

    def _begin_removing(self, form: _Form) -> None:
        form.state = "removing"
        self._removals.put(form)

    def _run_removals(self) -> None:
        while (form := self._removals.get()) is not None:
            try:
                self._remove(form.key)
            except Exception:
                # The bank may still hold it, so its bytes still count.
                logging.getLogger(__name__).exception("an adapter could not be removed")
                state, size = "resident", form.bytes
            else:
                state, size = "absent", 0
            with self._changed:
                form.state, form.bytes = state, size
                if state == "absent":
                    self._remove_if_unused(form)
                self._changed.notify_all()
