"""A model with ALoRA, and a training loop for it."""

import torch
from torch import Tensor, nn

from lorica import Driver
from lorica.core.bank import attached
from lorica.core.state import adapter_state
from lorica.methods.alora import AloraAdapter
from lorica.methods.alora.schedule import Allocation

GOAL = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(11))
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(12))
SHORT = {"rounds": 3, "first_round": 4, "round_every": 3}


def loss_of(model: nn.Module) -> Tensor:
    return (model(X) - GOAL).square().mean()


def ranked(model: nn.Module) -> dict[str, AloraAdapter]:
    return attached(model, "default").adapters  # type: ignore[return-value]


class Loop:
    """Training as lorica.train does it, with AdamW, decay and momentum; `on` is a model."""

    def __init__(self, on: nn.Module, total: int, **options):
        self.model = on
        self.driver = Driver(on, total=total, **options)
        self.schedule: Allocation = self.driver.schedule  # type: ignore[assignment]
        self.schedule.probe = self.probe
        self.named = {k: t for k, t in adapter_state(on).items() if isinstance(t, nn.Parameter)}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=0.03, weight_decay=0.1)

    @torch.no_grad()
    def probe(self) -> float:
        return loss_of(self.model).item()

    def steps(self, n: int) -> None:
        for _ in range(n):
            loss_of(self.model).backward()
            self.driver.before_step()
            self.optimizer.step()
            self.driver.after_step()
            for name in self.schedule.fresh():
                self.optimizer.state.pop(self.named[name], None)
            self.optimizer.zero_grad()


def dead_parts(model: nn.Module) -> list[Tensor]:
    found = []
    for adapter in ranked(model).values():
        out = adapter.g == 0
        found += [adapter.a[out].detach(), adapter.b[:, out].detach()]
    return found
