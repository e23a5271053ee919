"""Where the model of a run lives; no other code asks how many processes train.

    Single      one process, one device
    Replicated  several processes, each with a whole copy (accelerate, DistributedDataParallel)
    Split       the blocks of the base in another process, see training.split

The order is load -> quantise -> adapt -> place -> replicate.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from torch import Tensor, nn

from lorica import progress
from lorica.base.load import DTYPES, LoadedModel
from lorica.base.offload import to_device
from lorica.core.schedule import Schedule
from lorica.data.example import Example
from lorica.errors import ConfigError
from lorica.training.base_model import load_base
from lorica.training.config import TrainConfig
from lorica.training.split.device import Device, connect
from lorica.training.split.kill_and_revive import KillAndRevive


class Placement(Protocol):
    """What a run asks of the place where it is trained.

    device: of this process. processes: how many train. is_writer: this process writes the files.
    has_blocks: the blocks of the base are in this process, so that they can be probed.
    can_retry: a step can be repeated in this process alone, after it ran out of memory.
    """

    device: torch.device
    processes: int
    is_writer: bool
    has_blocks: bool
    can_retry: bool

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        """The base of the run, quantised if the settings say so. labels: classes of the rows."""
        ...

    def place(self, model: nn.Module) -> None:
        """Move the adapted model to the device. In place."""
        ...

    def replicate(self, objective: nn.Module) -> nn.Module:
        """The module to call for the loss, so that gradients are averaged over the processes."""
        ...

    def rows(self, rows: Sequence[Example]) -> list[Example]:
        """Those rows of a step that this process computes."""
        ...

    def rows_of_all(self, count: int) -> int:
        """Rows of one optimizer step, where each process computes `count`."""
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

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        ...

    def agree(self, x: float) -> float:
        """The largest value of any process, so that all decide alike."""
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


class Single:
    """One process with one device."""

    processes: int = 1
    is_writer: bool = True
    has_blocks: bool = True
    can_retry: bool = True

    def __init__(self, device: torch.device):
        self.device = device

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        return load_base(config, labels)

    def place(self, model: nn.Module) -> None:
        to_device(model, self.device)

    def replicate(self, objective: nn.Module) -> nn.Module:
        return objective

    def rows(self, rows: Sequence[Example]) -> list[Example]:
        return list(rows)

    def rows_of_all(self, count: int) -> int:
        return count

    def seed(self, step: int) -> int:
        return step

    def loss_weight(self, labels: int) -> float:
        return 1 / labels

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, x: Tensor) -> Tensor:
        return x

    def agree(self, x: float) -> float:
        return x

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


class Replicated(Single):
    """What accelerate has set up: several processes, or one with mixed precision."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(accelerator.device)
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

    def rows_of_all(self, count: int) -> int:
        return count * self.processes

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

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


class Split(Single):
    """The device's side of a split run: the blocks of the base are in the cloud process."""

    has_blocks = False
    can_retry = False  # the cloud is in the middle of the step
    remote: Device

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        progress.announce(f"loading the base {config.base}")
        base, self.remote = connect(config.base, DTYPES[config.dtype], str(config.peer))
        return base

    def place(self, model: nn.Module) -> None:
        super().place(model)
        self.remote.use_adapters()

    def schedule(self, config: TrainConfig) -> Schedule | None:
        if config.active_share == 1:
            return None
        return KillAndRevive(
            self.remote.adapters,
            self.remote.active,
            share=config.active_share,
            interval=config.active_steps,
            seed=config.seed,
        )

    def step_facts(self) -> dict[str, int]:
        return {"sent_bytes": self.remote.take_sent_bytes()}

    def settle(self) -> list[str]:
        return self.remote.settle()

    def close(self) -> None:
        self.remote.close()


def choose_placement(config: TrainConfig) -> Placement:
    """The placement for the settings of a run and for how the process was started."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        # A method may freeze tensors, or find no use for them in a step.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if config.split == "device":
        return Split(accelerator.device)
    plain = accelerator.distributed_type == DistributedType.NO
    if plain and accelerator.mixed_precision == "no":
        return Single(accelerator.device)
    return Replicated(accelerator)


def placement_for_several(config: TrainConfig) -> Placement:
    """The placement of runs that are trained together. Raises: ConfigError for more processes."""
    placement = choose_placement(config)
    if placement.processes > 1:
        raise ConfigError(
            f"--each trains several runs in one process, and {placement.processes} were started.",
            fix="start lorica without accelerate launch or torchrun",
        )
    return placement
