"""No answer comes from another adapter than the one that it names, whatever happens around it.

Each answer is compared with what its adapter answers alone (shelf.py), token by token, while
adapters are loaded, replaced, unloaded and evicted, and answers are cancelled. The same comparison
must fail when a fault is planted.
"""

from dataclasses import replace

import pytest

from lorica.base.load import load
from lorica.generation.decoder import Decoder
from lorica.serve import generations, reading
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.identity import bank_key
from tests.marks import at_length, slow_but
from tests.serve.shelf import stock
from tests.serve.traffic import Changes, Traffic, asks, going_on, mistakes

ONE_EACH: dict[str, int] = dict.fromkeys(
    ("lora", "dora", "adalora", "pissa", "ia3", "prefix_tuning", "hyperlora"), 1
)
FIFTY = {
    "lora": 12,
    "dora": 10,
    "adalora": 7,
    "pissa": 6,
    "ia3": 7,
    "prefix_tuning": 6,
    "hyperlora": 2,
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    return stock(root, ONE_EACH, twice=3, prompts=(4, 30), tokens=6)


def serve(
    shelf, base, requests, *, clients, in_flight, slots=6, changing=True, evicting=True, pause=0.0
):
    """Answers and mistakes. evicting: the memory holds what is in use and little more."""
    engine = engine_of(load(str(base)), EngineSettings(max_length=448, slots=slots))
    changes, traffic = Changes(engine), Traffic(engine, shelf, clients, in_flight)
    for alias, folders in shelf.folders.items():
        changes.load(alias, folders[0])
    sizes = sorted(card.resident_bytes for card in engine.store.cards())
    if evicting:
        engine.store.residency.budget = sum(sizes[-(clients * in_flight + 2) :])
    engine.start()
    try:
        if changing:
            with going_on(changes, shelf, seed=1, pause=pause):
                outcomes = traffic.run(requests)
        else:
            outcomes = traffic.run(requests)
        stats = engine.stats()
        assert (stats.queued, stats.running, engine.store.draining()) == (0, 0, [])
        assert not any(form.leases for form in engine.store.residency._forms.values())
    finally:
        engine.close()
    return outcomes, mistakes(shelf, outcomes, changes.generations), changes.counts, stats


def test_each_answer_is_its_solo_answer_while_adapters_come_and_go(shelf, small_base):
    requests = asks(shelf, 100, seed=0)
    outcomes, wrong, counts, stats = serve(shelf, small_base, requests, clients=2, in_flight=2)
    assert wrong == []
    assert len(outcomes) == 100
    assert counts["loads"] > 20 < counts["unloads"]
    assert not [what for what in counts if what.startswith("failed")]
    assert stats.evictions > 10


def key_of_the_alias(file, condition=None):
    return f"{file.folder.name.partition('.')[0]}:{condition}"


def key_without_condition(file, condition=None):
    return bank_key(file)


def keeps_its_neighbour(remove):
    """The last row moves into the gap of the row that ends, and acts as that one did."""

    def remove_and_mix(self, row):
        slot, last = self._rows.index(row), self._rows[self._decoding - 1]
        remove(self, row)
        if slot < self._decoding and self._rows[slot] is last:
            last.request = replace(last.request, adapter=row.request.adapter)

    return remove_and_mix


@pytest.mark.parametrize("fault", slow_but(["neighbour"], ["name", "condition", "neighbour"]))
def test_a_planted_fault_is_caught(fault, shelf, small_base, monkeypatch):
    if fault == "neighbour":
        monkeypatch.setattr(Decoder, "_remove", keeps_its_neighbour(Decoder._remove))
    else:
        key = key_of_the_alias if fault == "name" else key_without_condition
        monkeypatch.setattr(generations, "bank_key", key)
        monkeypatch.setattr(reading, "bank_key", key)
    requests = asks(shelf, 60, seed=3)
    options = {"clients": 1, "in_flight": 6, "changing": fault == "name", "evicting": False}
    _, wrong, _, _ = serve(shelf, small_base, requests, **options)
    assert wrong
    assert all("tokens" in sentence or "ended" in sentence for sentence in wrong)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_requests_over_fifty_adapters(small_base, tmp_path):
    count = at_length(2000, 400)
    shelf = stock(tmp_path, FIFTY, twice=20, prompts=(4, 9, 60, 280), tokens=16)
    requests = asks(shelf, count, seed=4)
    outcomes, wrong, counts, stats = serve(
        shelf, small_base, requests, clients=3, in_flight=8, slots=16, pause=0.1
    )
    assert wrong == []
    assert len(outcomes) == count
    assert len(shelf.folders) == 50
    assert {ask.alias for ask in requests} == {None, *shelf.folders}
    assert not [what for what in counts if what.startswith("failed")]
    assert counts["loads"] > count / 20 < counts["unloads"]
    assert stats.evictions > count / 20
    assert sum(outcome.end.reason == "cancelled" for outcome in outcomes) > count / 100
