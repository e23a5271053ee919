"""A small training loop of the tests' own, in the order that core.schedule names."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from tests.laws.bases import Stack


class Run:
    """`Stack`, an adapter, its schedule and AdamW; every step has data of its own."""

    def __init__(self, method: Method, total: int, *, lr: float = 0.02, **targets: object):
        self.method, self.total, self.lr, self.targets = method, total, lr, targets
        self.model = lorica.adapt(Stack(), method, **targets)
        self.driver = Driver(self.model, total=total)
        self.schedule = self.driver.schedule
        self.adapters = attached(self.model, "default").adapters
        self.tensors = {
            k: t for k, t in adapter_state(self.model).items() if isinstance(t, nn.Parameter)
        }
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=lr, weight_decay=0)

    def step(self, before: Callable[[int], None] | None = None) -> int:
        t = self.driver.t + 1
        generator = torch.Generator().manual_seed(t)
        x, y = (torch.randn(4, 3, 12, generator=generator) for _ in range(2))
        loss = (self.model(x) - y).square().mean() + self.driver.penalty()
        loss.backward()
        self.driver.before_step()
        if before:
            before(t)
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()
        return t

    def to(self, last: int) -> "Run":
        while self.driver.t < last:
            self.step()
        return self

    def vectors(self, name: str) -> dict[str, Tensor]:
        return {s: getattr(a, name).detach().clone() for s, a in self.adapters.items()}

    def resumed(self) -> "Run":
        """A new model, optimizer and schedule, from the state of these alone."""
        other = Run(self.method, self.total, lr=self.lr, **self.targets)
        load_adapter_state(other.model, adapter_state(self.model))
        other.optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        other.driver.load_state({k: t.clone() for k, t in self.driver.state().items()})
        return other


def zeros(vectors: Iterable[Tensor]) -> int:
    """How many numbers of the vectors are exactly zero."""
    return sum(int((v == 0).sum()) for v in vectors)


def same(one: Run, other: Run) -> bool:
    """The adapters of two runs agree in every bit."""
    a, b = adapter_state(one.model), adapter_state(other.model)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
