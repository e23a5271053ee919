"""Threads that load, replace, unload and answer at once: nobody gets another's bytes, nothing waits
for ever, and all memory comes back."""

import hashlib
import random
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest

from lorica.errors import FileError
from lorica.formats.adapter_file import read
from lorica.serve import generations, reading
from lorica.serve.refusals import Refusal
from tests.marks import at_length
from tests.serve.fake_engine import (
    SIZE,
    Serving,
    acquire,
    prepare,
    write_adapter,
    write_conditioned,
)

CONDITIONS = ("x", "y")
ALIASES = ("alice", "bob", "carol")


class Traffic:
    """A server under load. mixed_up: answers that came from another adapter's bytes."""

    def __init__(self, root: Path, seconds: float):
        self.folders = {n: write_adapter(root / str(n), n) for n in (1, 2, 3)}
        self.folders[4] = write_conditioned(root / "4", 4, CONDITIONS)
        self.number_of = {read(folder).digest: n for n, folder in self.folders.items()}
        self.links = {alias: root / alias for alias in ALIASES}
        for number, link in enumerate(self.links.values(), start=1):
            link.symlink_to(self.folders[number])
        self.seconds = seconds
        self.errors: list[BaseException] = []
        self.mixed_up: list[tuple[object, ...]] = []
        self.answers = 0
        self.ended: deque = deque()  # leases that the engine's thread is to release

    def run(self) -> None:
        with Serving(budget=3 * SIZE, patience=2.0) as self.serving:
            self.store = self.serving.store
            self.serving.engine.on_step = self.step
            works = [self.operate, self.operate, self.change_folders, *[self.answer] * 3]
            threads = [
                threading.Thread(target=self.work, args=(work, seed))
                for seed, work in enumerate(works)
            ]
            self.until = time.monotonic() + self.seconds
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(self.seconds + 60)  # its work, and a minute to end what it has begun
                assert not thread.is_alive(), "a thread waits for ever"
            if self.errors:
                raise self.errors[0]
            self.empty()

    def goes_on(self) -> bool:
        return time.monotonic() < self.until or self.answers < 50

    def work(self, work, seed: int) -> None:
        draw = random.Random(seed)
        while not self.errors and not self.mixed_up and self.goes_on():
            try:
                work(draw)
            except (Refusal, FileError):
                pass
            except BaseException as error:
                self.errors.append(error)

    def step(self) -> None:
        """As the engine's thread: quick calls of the store, never one that waits."""
        while self.ended:
            self.ended.popleft().release()
        self.store.cards()
        with suppress(Refusal):
            self.store.reserve("alice").release()

    def operate(self, draw: random.Random) -> None:
        alias = draw.choice(ALIASES)
        what = draw.randrange(8)
        if what == 0:
            self.store.pin(alias, draw.random() < 0.1)
        elif what == 1:
            self.store.pin(alias, False)
            self.store.unload(alias)
        elif what == 2:
            self.store.load(alias, self.links[alias], expected_generation=draw.randrange(5))
        else:
            folder = draw.choice([self.links[alias], *self.folders.values()])
            self.store.load(alias, folder)
        time.sleep(0.001 * draw.random())

    def change_folders(self, draw: random.Random) -> None:
        link = self.links[draw.choice(ALIASES)]
        new = link.with_name("new")
        new.symlink_to(draw.choice(list(self.folders.values())))
        new.replace(link)
        time.sleep(0.005)

    def answer(self, draw: random.Random) -> None:
        model = draw.choice(ALIASES) + draw.choice(["", "", ":x", ":y"])
        lease = acquire(self.store, model)
        wanted = self.number_of[lease.generation.digest], lease.condition
        for _ in range(3):
            content = self.serving.engine.bank[lease.key]
            if (content.number, content.condition) != wanted:
                self.mixed_up.append((model, wanted, content))
            time.sleep(0.001 * draw.random())
        self.answers += 1
        self.ended.append(lease)

    def empty(self) -> None:
        """All memory comes back."""
        for card in self.store.cards():
            self.store.pin(card.name, False)
            self.store.unload(card.name)
        patience = time.monotonic() + 20
        while self.store.residency._forms and time.monotonic() < patience:
            time.sleep(0.001)
        assert self.serving.engine.bank == {}
        assert self.store.residency.total == 0
        assert self.store.draining() == []


def test_traffic_while_adapters_come_and_go(tmp_path):
    traffic = Traffic(tmp_path, 1.5)
    traffic.run()
    assert traffic.mixed_up == []


@pytest.mark.slow
def test_traffic_for_longer(tmp_path):
    traffic = Traffic(tmp_path, at_length(60, 20))
    traffic.run()
    assert traffic.mixed_up == []


@pytest.mark.parametrize("fault", ["the alias", "the path", "no condition"])
def test_the_traffic_notices_a_key_that_is_not_of_the_content(fault, tmp_path, monkeypatch):
    """A planted fault, as five servers had it: the key is taken from a name."""

    def key(file, condition=None):
        fields = {
            "the alias": (file.folder.name, condition),
            "the path": (str(file.folder), condition),
            "no condition": (file.digest,),
        }[fault]
        return hashlib.sha256(repr(fields).encode()).hexdigest()

    for module in (generations, reading):
        monkeypatch.setattr(module, "bank_key", key)
    traffic = Traffic(tmp_path, 20)  # it ends with the first mix-up
    traffic.run()
    assert traffic.mixed_up


def test_loads_of_one_alias_are_ordered(tmp_path):
    """The one that began first is published first, however long it takes."""
    folders = [write_adapter(tmp_path / str(n), n) for n in (1, 2)]
    has_begun, may_go_on = threading.Event(), threading.Event()

    def slow(file, condition):
        content = prepare(file, condition)
        if content.number == 1:
            has_begun.set()
            may_go_on.wait(20)
        return content

    with Serving(prepare=slow) as serving:
        first = threading.Thread(target=serving.store.load, args=("alice", folders[0]))
        first.start()
        assert has_begun.wait(20)
        second = threading.Thread(target=serving.store.load, args=("alice", folders[1]))
        second.start()
        assert serving.store.cards() == [], "nothing is served yet, and the list does not wait"
        serving.store.load("bob", folders[1])  # another alias does not wait either
        may_go_on.set()
        first.join(20)
        second.join(20)
        with acquire(serving.store, "alice") as lease:
            assert lease.generation.number == 2
            assert serving.engine.bank[lease.key].number == 2


def test_one_form_is_prepared_once_for_all_who_wait_for_it(tmp_path):
    folder = write_adapter(tmp_path / "1", 1)
    prepared = []

    def slow(file, condition):
        prepared.append(condition)
        time.sleep(0.05)
        return prepare(file, condition)

    with Serving(prepare=slow) as serving:
        loads = [
            threading.Thread(target=serving.store.load, args=(alias, folder)) for alias in ALIASES
        ]
        for thread in loads:
            thread.start()
        for thread in loads:
            thread.join(20)
        assert len(prepared) == 1
        assert serving.numbers == [1]
        assert [card.state for card in serving.store.cards()] == ["resident"] * 3


def test_an_engine_that_cannot_remove_is_not_forgotten(tmp_path, caplog):
    """Its bytes count until they have left."""
    folder = write_adapter(tmp_path / "1", 1)
    with Serving() as serving:
        serving.store.load("alice", folder)
        remove = serving.store.residency._remove
        serving.store.residency._remove = lambda key: 1 // 0
        serving.store.unload("alice")
        assert "could not be removed" in caplog.text
        assert serving.store.residency.total == SIZE
        serving.store.residency._remove = remove
        serving.store.load("bob", folder)
        assert serving.store.unload("bob") == SIZE
        assert serving.engine.bank == {}
