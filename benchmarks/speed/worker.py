"""One side in its process: a JSON object a line in, one out.

{"do": "build", "side": {...}}    -> {"seconds": until the first step has been taken}
{"do": "gate", "file": PATH}      -> {"loss": ...}, and the gradients in the file
{"do": "steps"}                   -> {"seconds": of the process, "wall": ..., "tokens": real}
{"do": "memory"}                  -> {"bytes": most that a step takes over the base}
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from benchmarks.speed.sides import Side, Work, held

REFERENCES = Path("/proc/self/clear_refs")


class Worker:
    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.work: Any = None

    def build(self, side: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        self.work: Work = Side(**side).build()
        self.work.step(0)
        return {"seconds": time.perf_counter() - self.began}

    def gate(self, file: str) -> dict[str, Any]:
        from safetensors.torch import save_file

        loss, gradients = self.work.gate()
        save_file({k: g.contiguous() for k, g in gradients.items()}, file)
        return {"loss": loss}

    def steps(self) -> dict[str, Any]:
        """One step on each batch."""
        wall, used = time.perf_counter(), time.process_time()
        for i in range(len(self.work.rows)):
            self.work.step(i)
        return {
            "seconds": time.process_time() - used,
            "wall": time.perf_counter() - wall,
            "tokens": sum(work.tokens(batch) for batch in self.work.rows),
        }

    def memory(self) -> dict[str, Any]:
        """Over the base alone: the adapter, its optimizer, and what a step holds."""
        REFERENCES.write_text("5")  # VmHWM begins anew
        for i in range(len(self.work.rows)):
            self.work.step(i)
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
