"""Memory comes back: of adapters that are loaded and unloaded, with and without traffic."""

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorica.base.load import load
from lorica.serve.build import EngineSettings, engine_of
from tests.marks import at_length
from tests.serve.shelf import stock
from tests.serve.traffic import Ask, Traffic


def bytes_of_tensors() -> int:
    """Of all tensors in the process that hold numbers (torch.compile's fakes hold none)."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = [o for o in gc.get_objects() if type(o) in kinds]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_no_tensor_of_an_unloaded_adapter_is_left(small_base, tmp_path):
    shelf = stock(
        tmp_path, {"lora": 1, "dora": 1, "prefix_tuning": 1}, twice=0, prompts=(4,), tokens=2
    )
    engine = engine_of(load(str(small_base)), EngineSettings(max_length=64, slots=2))
    engine.start()

    def cycle() -> int:
        for alias, (folder,) in shelf.folders.items():
            engine.store.load(alias, folder)
            asyncio.run(Traffic(engine, shelf).ask(Ask(alias, None, 0, 0, 2)))
            assert engine.store.unload(alias) > 0
        return bytes_of_tensors()

    try:
        first = cycle()
        assert [cycle() for _ in range(3)] == [first] * 3
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("has_traffic", [False, True])
def test_resident_memory_comes_back_after_many_cycles(has_traffic, tmp_path):
    cycles = at_length(200, 80)
    command = [sys.executable, "-m", "tests.serve.cycles", str(tmp_path), str(cycles)]
    reply = subprocess.run(
        [*command, str(int(has_traffic))],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    assert reply.returncode == 0, reply.stderr
    before, after = map(float, reply.stdout.split())
    print(f"{before:.1f} MiB, {after:.1f} MiB after {cycles} cycles")
    assert after <= 1.01 * before
