"""A model with B-LoRA, and a training loop for it."""

import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state
from lorica.methods.blora import Blora, BloraAdapter
from tests.laws.bases import Stack

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))


def fresh(seed: int = 0, base: nn.Module | None = None, **settings) -> nn.Module:
    return lorica.adapt(base or Stack(), Blora(**{"r": 4, **settings}), seed=seed)


def adapters(model: nn.Module) -> list[BloraAdapter]:
    return list(attached(model, "default").adapters.values())  # type: ignore[arg-type]


def first(model: nn.Module) -> BloraAdapter:
    return adapters(model)[0]


class Run:
    """A loop of our own, as the trainer runs it."""

    def __init__(self, model: nn.Module, total: int, lr: float = 1e-2, micro: int = 1, **settings):
        self.model, self.driver, self.micro = model, Driver(model, total=total), micro
        self.tensors = {k: t for k, t in adapter_state(model).items() if t.requires_grad}
        method = Blora(**{"r": 4, **settings})
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [t], "lr": method.learning_rate(k.rpartition(".")[2], lr)}
                for k, t in self.tensors.items()
            ],
            weight_decay=0.0,
        )
        self.losses: list[float] = []

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.driver.t)
        loss = torch.zeros(())
        for x in torch.randn(8, 12, generator=generator).chunk(self.micro):
            loss = loss + (self.model.train()(x) - 1).square().sum()
        self.losses.append(loss.item())
        (loss / 100 + self.driver.penalty()).backward()
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


def put(adapter: BloraAdapter, a=(), b=(), e=(), ranks=()) -> None:
    """Set gates, those that are given. In place."""
    n = adapter.split[0] // len(adapter.sizes)
    with torch.no_grad():
        for i, values in enumerate((a, b, e)):
            if values:
                adapter.gates[i * n : (i + 1) * n] = torch.tensor(values)
        if ranks:
            adapter.gates[adapter.split[0] :] = torch.tensor(ranks)
