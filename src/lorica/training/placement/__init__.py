"""Where the model of a run lives; no other code asks how many processes train.

    Single      one process, one device
    Replicated  several processes, each with a whole copy (accelerate, DistributedDataParallel)
    Split       the blocks of the base in another process, see training.split

The order is load -> quantise -> adapt -> place -> replicate.
"""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from lorica.errors import ConfigError
from lorica.training.config import TrainConfig
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
]


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
