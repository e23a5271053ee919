"""Go on with a run from its newest checkpoint."""

from typing import TYPE_CHECKING

from lorica.core.state import load_adapter_state
from lorica.training import checkpoint as ckpt
from lorica.training import optim

if TYPE_CHECKING:
    from lorica.training.loop import Trainer


def continue_from(trainer: "Trainer", found: ckpt.Checkpoint) -> None:
    """Put a checkpoint of the run into the trainer and its model. In place."""
    ckpt.check_same(found, data=trainer.data.digest, base=trainer.identity, run=trainer.run.folder)
    load_adapter_state(trainer.base.model, found.adapter, trainer.name, source="the checkpoint")
    optim.load_optimizer_state(trainer.optimizer, trainer.tensors, found.optimizer)
    trainer.driver.load_state(found.schedule)
    trainer.progress, trainer.best = found.progress, found.best
