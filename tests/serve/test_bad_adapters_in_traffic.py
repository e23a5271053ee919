"""Bad adapters loaded while answers are written: all are refused, and no answer changes."""

import shutil
import threading

import pytest

from lorica.base.load import load
from lorica.errors import LoricaError
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.names import folder_in
from tests.serve.bad_adapters import BAD, NAMES, good
from tests.serve.shelf import stock
from tests.serve.traffic import Changes, Traffic, asks, mistakes

SAMPLE = ("one bit is another", "a NaN", "another base", "all weights", "a pipe for weights")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    return stock(root, {"lora": 1, "dora": 1, "prefix_tuning": 1}, twice=0, prompts=(4,), tokens=6)


@pytest.mark.parametrize(
    "cases", [SAMPLE, pytest.param(tuple(BAD), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_they_are_refused_and_no_answer_changes(cases, shelf, small_base, tmp_path):
    engine = engine_of(load(str(small_base)), EngineSettings(max_length=128, slots=4))
    changes, traffic = Changes(engine), Traffic(engine, shelf, clients=1, in_flight=6)
    for alias, folders in shelf.folders.items():
        changes.load(alias, folders[0])
    engine.start()
    bytes_before = engine.stats().resident_bytes
    stop = threading.Event()

    def ask_on():
        seed = 0
        while not stop.is_set():
            traffic.run(asks(shelf, 20, seed=(seed := seed + 1)))

    client = threading.Thread(target=ask_on)
    client.start()
    try:
        for number, case in enumerate(cases):
            answered = len(traffic.outcomes)
            _load_bad(engine.store, case, tmp_path / str(number), list(shelf.folders))
            while len(traffic.outcomes) == answered and client.is_alive():
                stop.wait(0.01)
        for name in NAMES:
            with pytest.raises(LoricaError, match="cannot be the name"):
                engine.store.load(name, shelf.folders["lora-0"][0])
    finally:
        stop.set()
        client.join()
        stats = engine.stats()
        engine.close()
    assert traffic.errors == []
    assert mistakes(shelf, traffic.outcomes, changes.generations) == []
    assert len(traffic.outcomes) >= 20 and traffic.refused == 0
    assert (stats.resident_bytes, stats.evictions) == (bytes_before, 0)


def _load_bad(store, case, root, aliases):
    """As a new alias, and in place of one that answers."""
    spoil, words = BAD[case]
    good(root / "root" / "good", seed=9)
    shutil.copytree(root / "root" / "good", root / "root" / "bad")
    spoil(root / "root" / "bad")
    for alias in ("bad", aliases[len(case) % len(aliases)]):
        before = {card.name: card.generation for card in store.cards()}
        with pytest.raises(LoricaError, match=words) as raised:
            store.load(alias, folder_in(root / "root", "bad"))
        assert raised.value.fix
        assert {card.name: card.generation for card in store.cards()} == before
