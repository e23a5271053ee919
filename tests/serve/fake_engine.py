"""A bank without a model, changed between the steps of a thread as the engine does it, and folders
of small adapters that a number tells apart."""

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorica
from lorica.core.adapter import Method
from lorica.core.draws import drawing
from lorica.formats.adapter_file import AdapterFile
from lorica.methods.hyperlora import Hyperlora
from lorica.serve.lease import Lease
from lorica.serve.reading import Reader
from lorica.serve.store import Store

SIZE = 1000
"""Bytes of every prepared adapter here."""


@dataclass(frozen=True)
class Content:
    """What `prepare` gives: the number that the adapter's tensors hold, and the condition."""

    number: float
    condition: str | None
    bytes: int = SIZE


def prepare(file: AdapterFile, condition: str | None = None) -> Content:
    return Content(number_of(file), condition)


def number_of(file: AdapterFile) -> float:
    return float(next(iter(file.tensors.values())).flatten()[0])


class FakeEngine:
    """Runs what is asked of its bank between steps, on its own thread. `bank` is its alone.

    limit: bytes of the bank that are never exceeded. Calls that wait are run in any order.
    on_step: called on the thread at each step, as the real engine calls the store.
    """

    def __init__(self, on_step: Callable[[], object] | None = None, limit: int | None = None):
        self.bank: dict[str, Content] = {}
        self.limit = limit
        self.calls: deque[tuple[Callable[[], int], Future[int]]] = deque()
        self.on_step = on_step
        self.draw = random.Random(0)
        self.stopping = threading.Event()
        self.woken = threading.Event()
        self.steps = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add(self, key: str, prepared: Content) -> int:
        return self.between_steps(lambda: self._add(key, prepared))

    def remove(self, key: str) -> int:
        return self.between_steps(lambda: self.bank.pop(key).bytes)

    def _add(self, key: str, prepared: Content) -> int:
        assert key not in self.bank, "a key is added once"
        self.bank[key] = prepared
        size = sum(content.bytes for content in self.bank.values())
        assert self.limit is None or size <= self.limit, "the budget is exceeded"
        return prepared.bytes

    def between_steps(self, call: Callable[[], int]) -> int:
        assert threading.current_thread() is not self.thread, "the engine would wait for itself"
        done: Future[int] = Future()
        self.calls.append((call, done))
        self.woken.set()
        return done.result(timeout=20)

    def _run(self) -> None:
        while not self.stopping.is_set():
            self.woken.wait(0.001)
            self.woken.clear()
            while self.calls:
                self.calls.rotate(self.draw.randrange(len(self.calls)))
                call, done = self.calls.popleft()
                try:
                    done.set_result(call())
                except BaseException as error:
                    done.set_exception(error)
            if self.on_step is not None:
                self.on_step()
            self.steps += 1

    def stop(self) -> None:
        self.stopping.set()
        self.woken.set()
        self.thread.join(10)


class Serving:
    """A store over a fake engine. Use it as a context manager."""

    def __init__(
        self,
        *,
        budget: int | None = None,
        patience: float = 5.0,
        reader: Reader | None = None,
        prepare: Callable[[AdapterFile, str | None], Any] = prepare,
    ):
        self.engine = FakeEngine(limit=budget)
        self.store = Store(
            prepare,
            self.engine.add,
            self.engine.remove,
            base_name="base",
            reader=reader,
            budget=budget,
            patience=patience,
            clock=lambda: 0.0,
        )

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()
        self.engine.stop()

    @property
    def numbers(self) -> list[float]:
        """The numbers of the adapters in the bank, sorted."""
        return sorted(content.number for content in self.engine.bank.values())

    def states(self) -> dict[str, str]:
        return {card.name: card.state for card in self.store.cards()}


def acquire(store: Store, model: str) -> Lease:
    """Lease what `model` points to, once it is in the bank. May be slow."""
    lease = store.reserve(model)
    try:
        lease.ensure()
    except BaseException:
        lease.release()
        raise
    return lease


def model() -> nn.Module:
    with drawing(0):
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def write_adapter(path: Path, number: float, method: Method | None = None) -> Path:
    """A folder of a small LoRA, or another method, whose tensors hold `number`."""
    adapted = model()
    lorica.adapt(adapted, method or lorica.Lora(r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".adapters." in name:
                parameter.fill_(number)
    return lorica.save(adapted, path)


def write_conditioned(path: Path, number: float, conditions: Sequence[str]) -> Path:
    """A folder of a HyperLoRA that knows these conditions."""
    method = Hyperlora(r=2, latent=4, hidden=2, penalty=0, conditions=tuple(conditions))
    return write_adapter(path, number, method)
