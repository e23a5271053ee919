"""A model of several sites, and AdaLoRA's schedule on it."""

import torch
from torch import nn

import lorica
from lorica.core.drive import Driver
from lorica.methods.adalora import Adalora
from lorica.methods.adalora.schedule import Decrease

PHASES = {"tinit": 5, "tfinal": 10, "deltaT": 3}


class Sites(nn.Module):
    """Linear layers side by side."""

    def __init__(self, sites: int, inputs: int = 5, outputs: int = 4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(sites))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], -1)


def scheduled(sites: int, total: int, **settings) -> Decrease:
    model = lorica.adapt(Sites(sites), Adalora(**settings))
    schedule = Driver(model, total=total).schedule
    assert isinstance(schedule, Decrease)
    return schedule
