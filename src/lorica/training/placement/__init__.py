"""Where the model of a run lives; no other code asks how many processes train.

    Single      one process, one device
    Replicated  several processes, each with a whole copy (accelerate, DistributedDataParallel)
    Sharded     several processes, each with a part of every weight (FSDP2)
    Split       the blocks of the base in another process, see training.split

The order is load -> quantise -> adapt -> place -> replicate or shard.
"""

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from lorica.errors import ConfigError, ResourceError
from lorica.training.config import TrainConfig
from lorica.training.placement.meeting import meet
from lorica.training.placement.protocol import Placement
from lorica.training.placement.replicated import Replicated
from lorica.training.placement.single import Single
from lorica.training.placement.split import Split

__all__ = [
    "Placement",
    "Replicated",
    "Single",
    "Split",
    "choose_placement",
    "placement_for_several",
    "shard_notices",
]


def choose_placement(config: TrainConfig) -> Placement:
    """The placement for the settings of a run and for how the process was started."""
    accelerator = _accelerator()
    if config.split == "device":
        return Split(accelerator.device)
    plain = accelerator.distributed_type == DistributedType.NO
    if plain and accelerator.mixed_precision == "no":
        return Single(accelerator.device)
    if config.shard and accelerator.num_processes > 1:
        if accelerator.mixed_precision != "no":
            raise ConfigError(
                f"accelerate's mixed precision ({accelerator.mixed_precision}) cannot be sharded.",
                fix="--dtype bfloat16, without mixed precision in accelerate's settings",
            )
        from lorica.training.placement.sharded import Sharded  # FSDP2 takes a second to import

        return Sharded(accelerator)
    return Replicated(accelerator)


def _accelerator() -> Accelerator:
    """The processes that were started, met. Raises: ResourceError if their port is in use."""
    try:
        meet()
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            # A method may freeze tensors, or find no use for them in a step.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ResourceError(
            f"the port {os.environ.get('MASTER_PORT')} is in use.",
            fix="name a free one: torchrun --master-port, or MASTER_PORT without torchrun",
        ) from None


def shard_notices(config: TrainConfig, placement: Placement) -> list[str]:
    """A notice if `shard` has no effect."""
    if not config.shard or placement.processes > 1:
        return []
    notice = "shard has no effect with one process, which holds the whole base: start several with"
    return [f"{notice} torchrun --nproc-per-node 2 -m lorica train ..."]


def placement_for_several(config: TrainConfig) -> Placement:
    """The placement of runs that are trained together. Raises: ConfigError for more processes."""
    if config.shard:
        raise ConfigError(
            "--each trains several runs in one process, and shard needs several processes.",
            fix="train the runs one by one, or leave shard out",
        )
    placement = choose_placement(config)
    if placement.processes > 1:
        raise ConfigError(
            f"--each trains several runs in one process, and {placement.processes} were started.",
            fix="start lorica without accelerate launch or torchrun",
        )
    return placement
