"""torchrun starts the processes of a run again after one of them died, with the same command.

The run then goes on from its newest checkpoint. Only a run that the same torchrun began is
continued, known by its `--rdzv-id`; every other folder that exists is refused, as always.
"""

import os
import socket
from pathlib import Path

from lorica import plain_files
from lorica.training.checkpoint import steps
from lorica.training.config import TrainConfig
from lorica.training.placement import Placement
from lorica.training.run import EVENTS, Run, read_events

RUN_ID = "TORCHELASTIC_RUN_ID"


def launch() -> str | None:
    """Which torchrun has started this process; None: it was started without.

    Without an id of its own (`--rdzv-id`, `--standalone`) a torchrun is known by its process.
    """
    name = os.environ.get(RUN_ID)
    if name is None:
        return None
    return f"{socket.gethostname()}:{os.getppid()}" if name in ("", "none") else name


def restarted(config: TrainConfig, placement: Placement) -> bool:
    """Whether to continue the run in `config.output`: the same torchrun began it, and starts again.

    All processes call this, and agree. A run without a checkpoint begins anew. The count of
    torchrun's restarts says nothing: each machine counts its own.
    """
    if launch() is None:
        return False
    continues = False
    run = Run(Path(config.output))
    if placement.is_writer and run.is_run and steps(run.checkpoints):
        has_log = plain_files.is_file(run.folder / EVENTS)
        events = read_events(run.folder) if has_log else []
        starts = [e for e in events if e.get("event") in ("start", "resume")]
        continues = bool(starts) and starts[-1].get("launch") == launch()
    return bool(placement.agree(continues))
