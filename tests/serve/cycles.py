"""`python -m tests.serve.cycles FOLDER COUNT TRAFFIC`: load and unload adapters, and print how much
memory the process holds (MiB) after a tenth of the cycles, and after all of them.

The adapters are of three methods and of several MiB each, over the bundled base. TRAFFIC is 1 if
answers are written meanwhile.
"""

import asyncio
import ctypes
import gc
import sys
import threading
from pathlib import Path

import torch

import lorica
from lorica.base.load import load
from lorica.core.state import adapter_state
from lorica.generation.sampling import Sampling
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.engine import ServingEngine
from lorica.serve.exchange import End, Job
from lorica.serve.refusals import ModelNotFound

METHODS = {
    "lora": {"r": 64},
    "dora": {"r": 48},
    "prefix_tuning": {"num_virtual_tokens": 32},
}


def write_adapters(root: Path) -> list[Path]:
    loaded = load("bundled")
    for seed, (name, settings) in enumerate(METHODS.items()):
        lorica.adapt(loaded.model, lorica.method(name, **settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in adapter_state(loaded.model).values():
                tensor.add_(torch.randn_like(tensor) * 0.05)
        lorica.save(loaded.model, root / name, base_path="bundled", tokenizer=loaded.tokenizer)
        lorica.detach(loaded.model)
    return [root / name for name in METHODS]


def resident_mib() -> float:
    """Of this process, without what the allocator could give back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Asking:
    """Inside the block a client asks the base and the adapter, again and again."""

    def __init__(self, engine: ServingEngine):
        self.engine, self.stopping, self.answers = engine, threading.Event(), 0
        self.thread = threading.Thread(target=lambda: asyncio.run(self._ask_on()))

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.thread.join()

    async def _ask_on(self) -> None:
        while not self.stopping.is_set():
            await asyncio.gather(*(self._ask(model) for model in ("bundled", "a", "a")))

    async def _ask(self, model: str) -> None:
        prompt = self.engine.encode("bundled", "Once upon a time")
        job = Job(tenant="t", model=model, prompt=prompt, sampling=Sampling(max_new_tokens=12))
        try:
            answer = self.engine.submit(job)
        except ModelNotFound:  # it is unloaded just now
            await asyncio.sleep(0.01)
            return
        async for event in answer:
            if isinstance(event, End):
                assert event.error is None, event
                self.answers += 1


def main(root: Path, count: int, has_traffic: bool) -> None:
    folders = write_adapters(root)
    engine = engine_of(load("bundled"), EngineSettings(slots=4, max_length=128))
    engine.start()

    def cycle(count: int) -> float:
        def load_and_unload() -> None:
            for i in range(count):
                engine.store.load("a", folders[i % len(folders)])
                engine.store.unload("a")

        if has_traffic:
            with (asking := Asking(engine)):
                load_and_unload()
            assert asking.answers > count // 10
        else:
            load_and_unload()
        assert engine.stats().resident_bytes == 0 == len(engine.store.draining())
        return resident_mib()

    print(cycle(count // 10), cycle(count), flush=True)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
