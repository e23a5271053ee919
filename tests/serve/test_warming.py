"""Adapters that find no room hold up no others, and no tenant fills the memory with its queue."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lorica.serve.residency import NoRoom
from lorica.serve.warming import MOST_AHEAD, Warming
from tests.serve.fake_engine import SIZE, Serving, acquire, write_adapter
from tests.serve.live_server import eventually
from tests.serve.simulated import Clock

PATIENCE = 30.0


@dataclass
class Loads:
    """An engine without adapters. full: keys that have no room. order: keys, as they are tried."""

    full: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def __post_init__(self):
        self.clock = Clock()
        self.warming = Warming(
            lambda work: self.ready.append(str(work.target.key)),
            lambda work, error: self.failed.update({str(work.target.key): error}),
            patience=PATIENCE,
            clock=self.clock,
        )

    def add(self, tenant: str, *keys: str) -> list:
        works: list[Any] = [Work(tenant, key, self) for key in keys]
        self.warming.add(works)
        return works

    def load(self, key: str) -> None:
        self.order.append(key)
        if key in self.full:
            raise NoRoom
        if key == "damaged":
            raise RuntimeError(key)


class Work:
    def __init__(self, tenant: str, key: str, loads: Loads):
        self.ticket = SimpleNamespace(tenant=tenant, state="queued")
        self.target = SimpleNamespace(key=key, ensure=lambda waits: loads.load(key))


def test_one_without_room_waits_its_patience_and_no_longer():
    loads = Loads(full={"big"})
    loads.add("a", "big", "small")
    loads.add("b", "other")
    assert loads.warming.take_turns()
    assert loads.ready == ["small", "other"], "also of the same tenant"
    loads.clock.now += PATIENCE - 0.1
    assert not loads.warming.take_turns() and not loads.failed
    loads.clock.now += 0.2
    assert loads.warming.take_turns()
    refusal = loads.failed["big"]
    assert isinstance(refusal, NoRoom) and refusal.status == 503 and refusal.retry_after
    assert "bytes" not in str(refusal)


def test_one_that_finds_room_later_is_loaded():
    loads = Loads(full={"big"})
    loads.add("a", "big")
    assert not loads.warming.take_turns()
    loads.full.clear()
    assert loads.warming.take_turns() and loads.ready == ["big"]
    assert not loads.warming.take_turns() and loads.order == ["big", "big"]


def test_tenants_take_turns_and_one_has_few_ahead():
    loads = Loads()
    many = loads.add("many", *(f"m{i}" for i in range(10)), "m0")
    loads.add("single", "s")
    assert loads.warming.take_turns()
    assert loads.ready == ["m0", "s"]
    while loads.warming.take_turns():
        pass
    assert loads.ready[2:] == [*(f"m{i}" for i in range(1, MOST_AHEAD)), "m0"]
    many[0].ticket.state = many[-1].ticket.state = "running"
    assert loads.warming.take_turns() and loads.ready[-1] == f"m{MOST_AHEAD}"
    assert not loads.warming.take_turns()


@pytest.mark.parametrize("state", ["cancelled", "finished"])
def test_one_that_ended_meanwhile_is_not_loaded(state):
    loads = Loads()
    (work,) = loads.add("a", "x")
    work.ticket.state = state
    assert loads.warming.take_turns() and not loads.order
    assert not loads.warming.take_turns()


def test_one_that_fails_ends_its_own_answer():
    loads = Loads()
    loads.add("a", "damaged", "good")
    loads.warming.start()
    try:
        assert eventually(lambda: loads.ready == ["good"])
        assert list(loads.failed) == ["damaged"]
    finally:
        loads.warming.close()


def test_without_waiting_the_store_says_at_once_that_there_is_no_room(tmp_path):
    """And does not prepare the adapter in vain the next time."""
    prepared = []

    def prepare(file, condition):
        from tests.serve.fake_engine import prepare

        prepared.append(condition)
        return prepare(file, condition)

    with Serving(budget=SIZE, patience=600.0, prepare=prepare) as serving:
        for name, number in (("a", 1), ("b", 2)):
            serving.store.load(name, write_adapter(tmp_path / name, number))
        held = acquire(serving.store, "b")
        count, began = len(prepared), time.monotonic()
        with serving.store.reserve("a") as lease:
            for _ in range(3):
                with pytest.raises(NoRoom):
                    lease.ensure(waits=False)
            assert len(prepared) == count and time.monotonic() - began < 300
            held.release()
            lease.ensure(waits=False)
            assert serving.numbers == [1.0]
