"""A side's process, which it may have with others."""

import json
import os
import subprocess
from typing import Any

from benchmarks.speed import peers
from benchmarks.speed.sides import Side

HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**62)}
"""glibc's heap keeps the pages that a step frees: otherwise the next one faults them in again,
which is a part of its time that is large, noisy, and no library's own."""


class SideError(Exception):
    """A side that cannot be built or measured here, and why."""


class Process:
    """Asked in JSON, it answers in JSON."""

    def __init__(self, side: Side, *, beside: "Process | None" = None, keeps_heap: bool = False):
        self.side = side
        if beside is not None:
            self.process = beside.process
            return
        heap = HEAP if keeps_heap else {}
        self.process = subprocess.Popen(
            [str(peers.interpreter(side.peer)), "-m", "benchmarks.speed.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **heap},
        )

    def __call__(self, do: str, **words: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, "of": self.side.name, **words}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.side.name}: its process ended ({self.process.wait()})")
        found = json.loads(answer)
        if "error" in found:
            raise SideError(f"{self.side.name}: {found['error']}")
        return found

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
