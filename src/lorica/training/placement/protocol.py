"""What a run asks of the place where it is trained."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorica.base.load import LoadedModel
from lorica.core.schedule import Schedule
from lorica.data.example import Example
from lorica.training.config import TrainConfig


class Placement(Protocol):
    """What a run asks of the place where it is trained.

    device: of this process. processes: how many train. is_writer: this process writes the files.
    has_blocks: the blocks of the base are in this process, so that they can be probed.
    can_retry: a step can be repeated in this process alone, after it ran out of memory.
    in_lockstep: all processes make the same number of forward passes.
    """

    device: torch.device
    processes: int
    is_writer: bool
    has_blocks: bool
    can_retry: bool
    in_lockstep: bool

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        """The base of the run, quantised if the settings say so. labels: classes of the rows."""
        ...

    def place(self, model: nn.Module) -> None:
        """Move the adapted model to the device. In place."""
        ...

    def replicate(self, objective: nn.Module) -> nn.Module:
        """The module to call for the loss, so that gradients are averaged over the processes."""
        ...

    def shard(
        self,
        model: nn.Module,
        name: str,
        tensors: Mapping[str, nn.Parameter],
        initial: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """Leave in this process its part of the model, and of what adapter `name` trains. In place.

        tensors, initial: of the adapter, now and before the first step. Everything that reads
        weights comes before. Returns: both, as this process holds them from here on.
        """
        ...

    def rows(self, rows: Sequence[Example]) -> list[Example]:
        """Those rows of a step that this process computes."""
        ...

    def seed(self, step: int) -> int:
        """A number of its own for every step and process."""
        ...

    def loss_weight(self, labels: int) -> float:
        """Factor of this process's summed loss that makes it the mean over `labels` of all."""
        ...

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes inside the block keep their gradients in this process."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def clip_gradients(self, tensors: Mapping[str, nn.Parameter], max_norm: float) -> float:
        """Complete the gradients of a step, and scale them down to `max_norm`. In place.

        Returns: their norm before.
        """
        ...

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the adapter or of its optimizer, for a file, in the process that writes.

        All processes call this, and those that do not write may get nothing.
        """
        ...

    def any_process(self, flags: Sequence[bool]) -> list[bool]:
        """Which of the flags are set in any process, where each sees a part of the tensors."""
        ...

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        ...

    def agree(self, x: float) -> float:
        """The largest value of any process, so that all decide alike."""
        ...

    def texts(self, text: str) -> list[str]:
        """A text of every process, in their order."""
        ...

    def wait(self) -> None:
        """Until every process is here."""
        ...

    def schedule(self, config: TrainConfig) -> Schedule | None:
        """A schedule in place of the method's own."""
        ...

    def step_facts(self) -> dict[str, int]:
        """What the event of a step says beside the usual."""
        ...

    def settle(self) -> list[str]:
        """Make the adapter final, before it is saved. In place. Returns: notices."""
        ...

    def close(self) -> None: ...
