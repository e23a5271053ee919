"""One process with one device."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.load import LoadedModel
from lorica.base.offload import to_device
from lorica.core.schedule import Schedule
from lorica.data.example import Example
from lorica.training.base_model import load_base
from lorica.training.config import TrainConfig


class Single:
    """One process with one device."""

    processes: int = 1
    is_writer: bool = True
    has_blocks: bool = True
    can_retry: bool = True
    in_lockstep: bool = False

    def __init__(self, device: torch.device):
        self.device = device

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        return load_base(config, labels)

    def place(self, model: nn.Module) -> None:
        to_device(model, self.device)

    def replicate(self, objective: nn.Module) -> nn.Module:
        return objective

    def shard(
        self,
        model: nn.Module,
        name: str,
        tensors: Mapping[str, nn.Parameter],
        initial: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        return dict(tensors), dict(initial)

    def rows(self, rows: Sequence[Example]) -> list[Example]:
        return list(rows)

    def seed(self, step: int) -> int:
        return step

    def loss_weight(self, labels: int) -> float:
        return 1 / labels

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self, tensors: Mapping[str, nn.Parameter], max_norm: float) -> float:
        parameters = list(tensors.values())
        return float(nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True))

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def any_process(self, flags: Sequence[bool]) -> list[bool]:
        return list(flags)

    def reduce(self, x: Tensor) -> Tensor:
        return x

    def agree(self, x: float) -> float:
        return x

    def texts(self, text: str) -> list[str]:
        return [text]

    def wait(self) -> None:
        """There is no other process."""

    def schedule(self, config: TrainConfig) -> Schedule | None:
        return None

    def step_facts(self) -> dict[str, int]:
        return {}

    def settle(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is open."""
