"""Loading and unloading again and again leaves no memory behind."""

import subprocess
import sys

import pytest

CYCLES = """
import sys
from pathlib import Path

import lorica
from lorica.base.load import load
from lorica.serve.build import EngineSettings, engine_of
from tests.laws.bases import move
from tests.serve.cycles import resident_mib

root = Path(sys.argv[1])
for name, method in {"lora": lorica.Lora(r=8), "dora": lorica.Dora(r=8)}.items():
    model = load("bundled").model
    lorica.save(move(lorica.adapt(model, method)), root / name, warn=False)
del model
engine = engine_of(load("bundled"), EngineSettings())
engine.start()
for cycle in range(220):
    if cycle == 20:
        before = resident_mib()
    engine.store.load("alias", root / ("lora", "dora")[cycle % 2])
    with engine.store.reserve("alias") as lease:
        lease.ensure()
    assert engine.store.unload("alias") > 2**19
print(before, resident_mib(), engine.store.residency.total)
engine.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_200_cycles_leave_no_memory_behind(tmp_path):
    """One adapter that stays would be 1 MB a cycle, 200 MB in all."""
    command = [sys.executable, "-W", "ignore", "-c", CYCLES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, total = map(float, done.stdout.split()[-3:])
    assert total == 0
    assert after <= 1.01 * before, f"{before:.1f} MiB before, {after:.1f} MiB after 200 cycles"
