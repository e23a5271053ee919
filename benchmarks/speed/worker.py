"""One side in its process: a JSON object a line in, one out.

{"do": "build", "side": {...}}    -> {"first_step": seconds until the first step was taken,
                                      "versions": {"torch": ..., ...}}
{"do": "gate", "file": PATH}      -> {"loss": ...}, and the gradients in the file
{"do": "steps"}                   -> {"seconds": of the process, "wall": ..., "tokens": real}
{"do": "memory"}                  -> {"bytes": most that a step takes over the base}
"""

import json
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from benchmarks.speed.sides import Side, Work, give_back, held

REFERENCES = Path("/proc/self/clear_refs")
LIBRARIES = ("torch", "transformers", "accelerate", "lorica", "peft", "trl", "litgpt", "lightning")


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
        self.work: Any = None

    def build(self, side: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        self.work: Work = Side(**side).build()
        self.work.steps(1)
        spent = time.perf_counter() - self.began
        give_back()  # the heaps of all sides together are more than the machine has
        return {"first_step": spent, "versions": versions()}

    def gate(self, file: str) -> dict[str, Any]:
        from safetensors.torch import save_file

        loss, gradients = self.work.gate()
        save_file({k: g.contiguous() for k, g in gradients.items()}, file)
        give_back()
        return {"loss": loss}

    def steps(self) -> dict[str, Any]:
        """One step on each batch, after one that is not timed and that warms heap and caches."""
        self.work.steps(1)
        wall, used = time.perf_counter(), time.process_time()
        self.work.steps(len(self.work.rows))
        found = {
            "seconds": time.process_time() - used,
            "wall": time.perf_counter() - wall,
            "tokens": sum(work.tokens(batch) for batch in self.work.rows),
        }
        give_back()
        return found

    def memory(self) -> dict[str, Any]:
        """Over the base alone: the adapter, its optimizer, and what a step holds."""
        give_back()
        REFERENCES.write_text("5")  # VmHWM begins anew
        self.work.steps(len(self.work.rows))
        return {"bytes": held("VmHWM") - self.work.held}


def main() -> None:
    worker = Worker()
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        words = json.loads(line)
        answer = getattr(worker, words.pop("do"))(**words)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
