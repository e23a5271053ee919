"""kill -9 of a client in the middle of its streams: their slots are free within one step."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorica.base.load import load
from lorica.serve.build import EngineSettings, engine_of
from tests.serve.live_server import eventually, running
from tests.serve.shelf import stock


@contextmanager
def reading_client(url, model, count):
    command = [sys.executable, "-m", "tests.serve.reading_client", url, model, str(count)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            yield client
        finally:
            client.kill()


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_its_slots_are_free_within_one_step(count, small_base, tmp_path, monkeypatch):
    shelf = stock(tmp_path, {"prefix_tuning": 1}, twice=0, prompts=(4,), tokens=1)
    ((alias, (folder,)),) = shelf.folders.items()
    engine = engine_of(load(str(small_base)), EngineSettings(max_length=448, slots=4))
    engine.store.load(alias, folder)
    steps, cancelled, freed = 0, {}, {}  # steps begun; at which answers were cancelled, and ended
    step, cancel, finish = engine._decoder.step, engine._cancel, engine._finish

    def count_step():
        nonlocal steps
        steps += 1
        time.sleep(0.02)  # or the answers are complete before the client is killed
        return step()

    def note_cancel(answer):
        cancelled.setdefault(answer, steps)
        cancel(answer)

    def note_finish(work, reason, error=None):
        freed[work.answer] = steps
        finish(work, reason, error)

    monkeypatch.setattr(engine._decoder, "step", count_step)
    monkeypatch.setattr(engine, "_cancel", note_cancel)
    monkeypatch.setattr(engine, "_finish", note_finish)
    engine.start()
    try:
        with running(engine) as live, reading_client(live.url, alias, count) as client:
            assert client.stdout is not None
            for _ in range(5 * count):
                assert client.stdout.readline() == "event\n"
            assert eventually(lambda: engine.stats().running == count)
            client.kill()
            client.wait()
            assert eventually(lambda: engine.stats().running == 0)
            assert len(cancelled) == count, "none of them had come to its end"
            for answer, at in cancelled.items():
                assert freed[answer] - at <= 1
            assert engine.store.draining() == [] and engine._decoder.free == engine._decoder.slots
            assert engine.store.unload(alias) > 0, "no lease is left"
    finally:
        engine.close()
