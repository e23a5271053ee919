"""Memory: a step that does not fit is taken again in smaller parts; what is freed is kept."""

import json
import subprocess
import sys

import pytest
import torch

import lorica
from lorica.training.objective import Objective
from tests.training.rows import adapter, farthest, settings


@pytest.fixture
def small(monkeypatch):
    """A machine whose memory holds two rows; the rows that it was asked for, call by call."""
    asked, own = [], Objective.forward

    def forward(self, batch):
        asked.append(len(batch.lengths))
        if len(batch.lengths) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return own(self, batch)

    monkeypatch.setattr(Objective, "forward", forward)
    return asked


def test_a_micro_batch_that_does_not_fit_is_halved(small_base, tmp_path, small, monkeypatch):
    """As often as needed, once for the run; the update is that of the micro-batch that fits."""
    halved = lorica.train(**settings(small_base, tmp_path / "a", learning_rate=2e-4), show=False)
    assert small == [8, 4, 2, 2, 2, 2, *[2] * 20]
    asked_for = settings(
        small_base,
        tmp_path / "b",
        learning_rate=2e-4,
        micro_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert farthest(adapter(halved.folder), adapter(lorica.train(**asked_for).folder)) == 0
    notice = "memory was full at step 1: micro-batches have 2 rows from here on, not 8 rows"
    assert notice in halved.notices
    assert notice in json.loads((halved.folder / "results.json").read_text())["lines"]
    assert notice in (halved.folder / "events.jsonl").read_text()


@pytest.mark.slow
def test_dropout_is_drawn_as_for_the_micro_batch_that_fits(small_base, tmp_path, small):
    changed = {"method": {"name": "lora", "dropout": 0.2}}
    halved = lorica.train(**settings(small_base, tmp_path / "a", **changed), show=False)
    asked_for = settings(
        small_base, tmp_path / "b", micro_batch_size=2, gradient_accumulation_steps=4, **changed
    )
    assert farthest(adapter(halved.folder), adapter(lorica.train(**asked_for).folder)) == 0


def test_a_single_row_that_does_not_fit_ends_the_run(small_base, tmp_path, monkeypatch):
    def forward(self, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        lorica.train(**settings(small_base, tmp_path), show=False)


def test_other_errors_are_not_taken_for_a_full_memory(small_base, tmp_path, monkeypatch):
    calls = []

    def forward(self, batch):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes"):
        lorica.train(**settings(small_base, tmp_path), show=False)
    assert len(calls) == 1


def in_its_own_process(script: str) -> str:
    """What a script prints that starts with `keep_freed_memory`.

    Heap and page faults belong to the whole process: in one with other tests, their blocks lie
    between, and their threads fault too.
    """
    start = """
import ctypes, resource
from lorica.training.freed_memory import keep_freed_memory
if not keep_freed_memory():
    raise SystemExit("not glibc")
"""
    done = subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True)
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_freed_memory_stays_with_the_process():
    """Blocks as large as activations come without page faults the second time.

    Each is a little smaller than the one before it: what else is allocated in between may take the
    beginning of the hole that a block has left. Above 32 MiB glibc by itself keeps no block.
    """
    faults = in_its_own_process("""
import torch
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones((16 << 20) - (step << 16))  # 64 MiB, or 256 KiB less: some 16,000 pages
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
""")
    assert min(int(count) for count in faults.split()) < 400, faults


def test_a_heap_of_gigabytes_is_kept_too():
    """Nothing is written to the blocks, so they take no memory."""
    left = in_its_own_process("""
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.sbrk.restype = [ctypes.c_void_p], ctypes.c_void_p
blocks = [libc.malloc(900 << 20) for _ in range(3)]
end = libc.sbrk(0)
for block in blocks:
    libc.free(block)
print(end - libc.sbrk(0))
""")
    assert left == "0\n"
