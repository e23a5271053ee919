"""The adapters of a server, by alias: loading, replacing, unloading, and leases on them.

An alias points to an immutable generation. A load reads, checks and tests a folder before it is
published, so that a bad one changes nothing. A request leases the generation that it was accepted
with: a replaced one drains, and goes with its last lease.

    alias ─► generation ─► key (of the content) ─► form in the bank (residency.py)
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorica.errors import LoricaError
from lorica.formats.adapter_file import AdapterFile
from lorica.serve.cards import alias_card, generation_card
from lorica.serve.conditions import conditions_of
from lorica.serve.exchange import ModelCard
from lorica.serve.generations import Alias, Generation, keys_of
from lorica.serve.lease import Lease
from lorica.serve.names import check_alias
from lorica.serve.reading import Reader, new_generation, read_again
from lorica.serve.refusals import Conflict, ModelNotFound, Refusal, Unavailable
from lorica.serve.residency import Residency, Sized


class Store:
    """Thread-safe. `reserve`, `Lease.release`, `cards` and `draining` are quick, on any thread; the
    rest may wait for the engine, and is not for its thread.

    prepare: (file, condition) -> what `add` takes; on any thread. add: (key, prepared) -> bytes.
    remove: (key) -> bytes. Both are run by the engine between its steps.
    base_name: which no alias may have. budget: bytes in the bank; None: no limit.
    patience: seconds that a load waits for room.
    """

    def __init__(
        self,
        prepare: Callable[[AdapterFile, str | None], Sized],
        add: Callable[[str, Any], int],
        remove: Callable[[str], int],
        *,
        base_name: str,
        reader: Reader | None = None,
        budget: int | None = None,
        patience: float = 30.0,
        clock: Callable[[], float] = time.time,
    ):
        self.residency = Residency(add, remove, budget=budget, patience=patience)
        self._prepare, self._reader = prepare, reader or Reader()
        self._base_name, self._clock = base_name, clock
        self._lock = threading.Lock()  # never held while anything slow runs
        self._aliases: dict[str, Alias] = {}
        self._leases: dict[Generation, int] = {}

    # -- for operators ------------------------------------------------------------------------

    def register(self, alias: str) -> None:
        """List an alias that is about to be loaded. Raises: Conflict if it is listed already."""
        entry = self._entry(alias)
        with self._lock:
            if entry.is_listed:
                raise Conflict(f"the name {alias!r} is taken.", fix="choose another name")
            entry.is_registered, entry.pinned, entry.failure = True, False, None

    def load(
        self,
        alias: str,
        folder: str | Path,
        *,
        expected_generation: int | None = None,
        pinned: bool | None = None,
        conditions: Sequence[str] = (),
    ) -> Generation:
        """Read, check and test an adapter, and let `alias` point to it.

        expected_generation: of the alias now; 0: it has none; None: any.
        pinned: whether it is kept from eviction and `unload`; None: as the alias was.
        conditions: those that may be asked for; (): all that it was trained on.

        A load that fails leaves the alias as it was. Raises: Conflict if the alias has another
        generation than expected; FileError, BaseError, ConfigError if the adapter is refused;
        Unavailable, ResourceError if there is no room.
        """
        entry = self._entry(alias)
        with entry.loading:
            self._set_loading(entry, expected_generation)
            try:
                return self._publish(entry, Path(folder), conditions, expected_generation, pinned)
            except LoricaError as error:
                entry.failure = error.summary
                raise
            finally:
                entry.is_loading = False

    def unload(self, alias: str, *, expected_generation: int | None = None) -> int:
        """Take `alias` away. Running streams go on, and what they use goes with the last of them.

        Returns: the bytes that are free now. Raises: ModelNotFound; Conflict if it is pinned, or
        has another generation than expected.
        """
        with self._lock:
            entry = self._known(alias)
            entry.check_generation(expected_generation)
            if entry.pinned:
                raise Conflict(f"the adapter {alias!r} is pinned.", fix="unpin it first")
            leaving = {} if entry.live is None else self._retire(entry.live, pinned=False)
            entry.live, entry.is_registered, entry.failure = None, False, None
        for key in leaving:
            self.residency.wait_until_removed(key)
        return sum(leaving.values())

    def pin(self, alias: str, pinned: bool) -> None:
        """Keep an alias from eviction and `unload`, or allow them again. Raises: ModelNotFound."""
        with self._lock:
            entry = self._known(alias)
            if entry.pinned != pinned and entry.live is not None:
                for key in entry.live.keys.values():
                    self.residency.pin(key, pinned)
            entry.pinned = pinned

    def close(self) -> None:
        """End the thread that removes forms, after what it has to do."""
        self.residency.close()

    # -- for requests -------------------------------------------------------------------------

    def reserve(self, model: str) -> Lease:
        """Lease what `model` points to now: an alias, or "alias:condition". Quick.

        It may have been evicted: see `Lease.ensure`. Raises: ModelNotFound, ConditionNotFound;
        Unavailable if the alias is not loaded yet.
        """
        alias, colon, condition = model.partition(":")
        with self._lock:
            generation = self._known(alias, model).generation()
            asked = condition if colon else None
            key = generation.key_of(asked)
            held = self.residency.is_resident, self._ensure, self._release
            lease = Lease(generation, asked, key, *held)
            self._leases[generation] = self._leases.get(generation, 0) + 1
            self.residency.lease(key)
            return lease

    def generation(self, model: str) -> Generation:
        """What `reserve` would lease now, whatever the condition. Nobody uses it by this.

        Raises: ModelNotFound; Unavailable if the alias is not loaded yet.
        """
        with self._lock:
            return self._known(model.partition(":")[0], model).generation()

    def draining(self) -> list[ModelCard]:
        """Generations that no alias points to, and that streams still use."""
        with self._lock:
            live = {entry.live for entry in self._aliases.values()}
            drained = [g for g in self._leases if g not in live]
        return [generation_card(g, self._base_name, self.residency, "draining") for g in drained]

    def cards(self, alias: str | None = None) -> list[ModelCard]:
        """Every alias, or one, with its state: registered, loading, resident, evicted or failed.

        Quick. Raises: ModelNotFound.
        """
        with self._lock:
            every = (entry for entry in self._aliases.values() if entry.is_listed)
            listed = every if alias is None else [self._known(alias)]
            return [alias_card(entry, self._base_name, self.residency) for entry in listed]

    # -- inside -------------------------------------------------------------------------------

    def _entry(self, alias: str) -> Alias:
        if check_alias(alias) == self._base_name:
            raise Conflict(f"{alias!r} is the name of the base.", fix="choose another name")
        with self._lock:
            return self._aliases.setdefault(alias, Alias(alias))

    def _known(self, alias: str, model: str | None = None) -> Alias:
        entry = self._aliases.get(alias)
        if entry is None or not entry.is_listed:
            raise ModelNotFound(model or alias)
        return entry

    def _set_loading(self, entry: Alias, expected: int | None) -> None:
        with self._lock:
            entry.check_generation(expected)
            entry.is_loading = True

    def _publish(
        self,
        entry: Alias,
        folder: Path,
        asked: Sequence[str],
        expected: int | None,
        pinned: bool | None,
    ) -> Generation:
        file = self._reader.read(folder)
        keys = keys_of(file, conditions_of(file, asked))
        findings = self._reader.examine(file)
        condition, key = next(iter(keys.items()))
        self.residency.lease(key)
        try:
            self.residency.ensure(key, lambda: self._prepare(file, condition))
            with self._lock:
                entry.check_generation(expected)
                number, now = entry.last + 1, self._clock()
                new = new_generation(entry.name, number, folder, file, keys, findings, now)
                self._replace(entry, new, entry.pinned if pinned is None else pinned)
        finally:
            self.residency.release(key)
        return new

    def _replace(self, entry: Alias, new: Generation, pinned: bool) -> None:
        """Let the alias point to `new`. Under the lock."""
        for key in new.keys.values():
            self.residency.own(key, pinned=pinned)
        if entry.live is not None:
            self._retire(entry.live, pinned=entry.pinned)
        entry.live, entry.last, entry.pinned = new, new.number, pinned
        entry.is_registered, entry.failure = False, None

    def _retire(self, generation: Generation, *, pinned: bool) -> dict[str, int]:
        """The generation is no longer live. Returns: bytes that leave the bank now, by key."""
        return {key: self.residency.disown(key, pinned=pinned) for key in generation.keys.values()}

    def _ensure(self, lease: Lease, waits: bool) -> None:
        generation, condition = lease.generation, lease.condition

        def prepare() -> Sized:
            file = read_again(self._reader, generation, condition)
            return self._prepare(file, condition)

        entry = self._aliases[generation.alias]
        try:
            self.residency.ensure(lease.key, prepare, waits=waits)
            entry.forget_loss(generation)
        except Refusal:
            raise
        except LoricaError as error:
            entry.lost = generation, error.summary
            raise Unavailable(
                f"the adapter {generation.alias!r} left the memory, and cannot be read again.",
                fix="ask the operator: its state says why",
            ) from error

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease.is_released:
                return
            lease.is_released = True
            left = self._leases[lease.generation] - 1
            if left:
                self._leases[lease.generation] = left
            else:
                del self._leases[lease.generation]
            self.residency.release(lease.key)
