"""Several processes, each with a whole copy of the model (accelerate, DistributedDataParallel)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.data.example import Example
from lorica.training.placement.single import Single


class Replicated(Single):
    """What accelerate has set up: several processes, or one with mixed precision."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(_plain(accelerator.device))
        self.accelerator = accelerator
        self.processes: int = accelerator.num_processes
        self.is_writer = accelerator.is_main_process
        self.can_retry: bool = self.processes == 1  # the others would wait for this one

    def replicate(self, objective: nn.Module) -> nn.Module:
        # DistributedDataParallel reads the names of what it must ignore from the module it wraps.
        outer: Any = objective
        ignored = getattr(outer.model, "_ddp_params_and_buffers_to_ignore", ())
        outer._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]
        return self.accelerator.prepare_model(objective)

    def rows(self, rows: Sequence[Example]) -> list[Example]:
        return list(rows)[self.accelerator.process_index :: self.processes]

    def seed(self, step: int) -> int:
        return step * self.processes + self.accelerator.process_index

    def loss_weight(self, labels: int) -> float:
        return self.processes / labels  # gradients are averaged, and the losses are to be summed

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(objective)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def reduce(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x.to(self.device), reduction="sum")  # type: ignore[return-value]

    def agree(self, x: float) -> float:
        own = torch.tensor([x], dtype=torch.float64, device=self.device)
        return float(self.accelerator.gather(own).max())  # type: ignore[union-attr]

    def texts(self, text: str) -> list[str]:
        own = text.encode()
        size = int(self.agree(len(own)))
        padded = torch.tensor(list(own.ljust(size, b"\0")), dtype=torch.uint8, device=self.device)
        gathered: Any = self.accelerator.gather(padded.unsqueeze(0))  # (processes, size)
        return [bytes(row).rstrip(b"\0").decode() for row in gathered.tolist()]

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def _plain(device: torch.device) -> torch.device:
    """The CPU without an index: to move weights to "cpu:0" copies them, out of their mapped files.

    accelerate numbers the CPU of several processes.
    """
    return torch.device("cpu") if device.type == "cpu" else device
