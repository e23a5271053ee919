"""A small model with HyperLoRA."""

import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.core.condition import (
    with_conditions,
)
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import Stack

TASKS = ("add", "sort", "turn")
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(7))


def made(method: Hyperlora | None = None, **settings) -> nn.Module:
    """`Stack` with a small HyperLoRA that knows TASKS."""
    small = {"r": 3, "latent": 16, "hidden": 6, "conditions": TASKS, **settings}
    return lorica.adapt(Stack(), method or Hyperlora(**small))


def network(model: nn.Module):
    return next(iter(attached(model, "default").adapters.values())).network


def at(model: nn.Module, conditions, x: torch.Tensor = X) -> torch.Tensor:
    with with_conditions(model, conditions):
        return model(x)
