"""Trains one run after another in each process of torchrun, for the tests of several processes.

LORICA_BLOCKS_WAIT=1: as on an accelerator, where blocks wait on the CPU until they are sharded;
here the CPU is the accelerator, too.
"""

import json
import os
import sys

import torch

torch.set_num_threads(1)

import lorica  # noqa: E402
from lorica.base import offload  # noqa: E402
from lorica.base.offload_blocks import BlockOffload  # noqa: E402
from lorica.training.placement.sharded import Sharded  # noqa: E402

if os.environ.get("LORICA_BLOCKS_WAIT"):

    def blocks_wait(model: torch.nn.Module) -> BlockOffload:
        ranges = offload.mapped_weights()
        return BlockOffload(model, torch.device("cpu"), pinned=False, ranges=ranges)

    offload.DiskOffload = blocks_wait  # type: ignore[assignment,misc]
    Sharded.offload_until_sharded = lambda self, config: "disk"  # type: ignore[method-assign]

for settings in json.loads(sys.argv[1]):
    lorica.train(**settings, show=False)
