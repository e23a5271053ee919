"""A model with AFLoRA, and a training loop for it."""

from typing import Any

import torch
from torch import Tensor, nn

import lorica
from lorica import Driver
from lorica.core.bank import attached
from lorica.core.state import adapter_state
from lorica.methods.aflora import Aflora, AfloraAdapter
from lorica.methods.aflora.schedule import Freezing

GOAL = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(11))
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(12))
SHORT: dict[str, Any] = {"r": 3, "tinit": 4, "tfinal": 8, "deltaT": 2}
TOTAL = 30  # A and B train for 22 steps


def scaled(model: nn.Module) -> dict[str, AfloraAdapter]:
    return attached(model, "default").adapters  # type: ignore[return-value]


def one(inputs: int, outputs: int, **changed) -> tuple[nn.Module, AfloraAdapter]:
    model = lorica.adapt(nn.Sequential(nn.Linear(inputs, outputs, bias=False)), Aflora(**changed))
    return model, next(iter(scaled(model).values()))


class Loop:
    """Training as lorica.train does it, with AdamW, momentum and much decay."""

    def __init__(self, on: nn.Module, total: int = TOTAL):
        self.model, self.driver = on, Driver(on, total=total)
        self.schedule: Freezing = self.driver.schedule  # type: ignore[assignment]
        self.named = {k: t for k, t in adapter_state(on).items() if isinstance(t, nn.Parameter)}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=0.03, weight_decay=0.5)

    def steps(self, n: int) -> None:
        for _ in range(n):
            (self.model(X) - GOAL).square().mean().backward()
            self.driver.before_step()
            self.optimizer.step()
            self.driver.after_step()
            self.optimizer.zero_grad()

    def frozen(self) -> set[str]:
        return {name for name, step in self.schedule.frozen_at.items() if step}


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {k: t.detach().clone() for k, t in adapter_state(model).items()}
