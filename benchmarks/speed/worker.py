"""Sides in their process, most of them one: a JSON object a line in, one out. "of" names the side.

{"do": "build", "of": NAME, "side": {...}}  -> {"first_step": seconds until it was taken,
                                                "versions": {"torch": ..., ...}}
{"do": "gate", "of": NAME, "file": PATH}    -> {"loss": ...}, and the gradients in the file
{"do": "reserve", "of": NAME}               -> {}
{"do": "steps", "of": NAME, "warm": BOOL}   -> {"seconds": of the process, "wall": ...,
                                                "tokens": real}
{"do": "memory", "of": NAME}                -> {"bytes": most that a step takes over the base}

What fails gives {"error": what}, and the process goes on: other sides may be in it.
"""

import json
import sys
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from benchmarks.speed.sides import Side, Work, give_back, held

REFERENCES = Path("/proc/self/clear_refs")
RESERVED, BLOCK = 8, 200_000_000  # blocks, and numbers of 4 bytes in each: 6 GiB in all
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "lorica",
    "peft",
    "trl",
    "litgpt",
    "lightning",
    "torchtune",
    "torchao",
)


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Worker:
    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.works: dict[str, Work] = {}
        self.own: dict[str, int] = {}  # bytes of adapter and optimizer

    def build(self, of: str, side: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        work = self.works[of] = Side(**side).build()
        work.steps(1)
        spent = time.perf_counter() - self.began
        give_back()  # the heaps of all sides together are more than the machine has
        self.own[of] = held("VmRSS") - work.held
        return {"first_step": spent, "versions": versions()}

    def gate(self, of: str, file: str) -> dict[str, Any]:
        from safetensors.torch import save_file

        loss, gradients = self.works[of].gate()
        save_file({k: g.contiguous() for k, g in gradients.items()}, file)
        give_back()
        return {"loss": loss}

    def reserve(self, of: str) -> dict[str, Any]:
        """Let the heap have more than any side's step takes, its pages already there, and used."""
        import torch

        blocks = [torch.ones(BLOCK) for _ in range(RESERVED)]
        del blocks
        self.works[of].steps(1)
        return {}

    def steps(self, of: str, warm: bool) -> dict[str, Any]:
        """One step on each batch.

        warm: the heap has its pages; otherwise one that is not timed does it, and
            gives the heap back in the end.
        """
        side = self.works[of]
        if not warm:
            side.steps(1)
        wall, used = time.perf_counter(), time.process_time()
        side.steps(len(side.rows))
        found = {
            "seconds": time.process_time() - used,
            "wall": time.perf_counter() - wall,
            "tokens": sum(work.tokens(batch) for batch in side.rows),
        }
        if not warm:
            give_back()
        return found

    def memory(self, of: str) -> dict[str, Any]:
        """Over the base alone: the adapter, its optimizer, and what a step holds."""
        give_back()
        before = held("VmRSS")
        REFERENCES.write_text("5")  # VmHWM begins anew
        self.works[of].steps(len(self.works[of].rows))
        return {"bytes": held("VmHWM") - before + self.own[of]}


def main() -> None:
    worker = Worker()
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        words = json.loads(line)
        try:
            answer = getattr(worker, words.pop("do"))(**words)
        except Exception as error:  # of whatever library the side is
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
