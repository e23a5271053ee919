"""The state of a run while it trains: what a step reads, and what an update changes.

`build.build_run` makes it, the functions of `loop` move it on, `finish.finish` writes the result.
"""

from dataclasses import dataclass

from lorica.base.fingerprint import Fingerprint
from lorica.base.load import LoadedModel
from lorica.data.load import Data
from lorica.training.adapter import TrainedAdapter
from lorica.training.checkpoint import Progress
from lorica.training.config import TrainConfig
from lorica.training.optim import Updater
from lorica.training.placement import Placement
from lorica.training.plan import Plan
from lorica.training.run import Run


@dataclass(eq=False)
class RunState:
    """One run; several may share a base and a placement, each with an adapter of its own.

    config: with a learning rate. run: its folder, event log and notices. fingerprint: of the base,
    exact. plan: its steps and batches. updater: optimizer and schedule of the method. until: the
    step after which the run pauses; None: it goes on to its end.
    """

    config: TrainConfig
    run: Run
    data: Data
    base: LoadedModel
    fingerprint: Fingerprint
    adapter: TrainedAdapter
    plan: Plan
    updater: Updater
    placement: Placement
    progress: Progress
    until: int | None = None

    @property
    def learning_rate(self) -> float:
        """The peak."""
        assert self.config.learning_rate is not None  # prepare.with_learning_rate has chosen one
        return self.config.learning_rate

    def learning_rate_at(self, step: int) -> float:
        """step: counted from 0."""
        return self.learning_rate * self.plan.lr_factor(step)

    @property
    def is_done(self) -> bool:
        return self.progress.step >= self.plan.total or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.progress.waited >= patience

    @property
    def is_paused(self) -> bool:
        """Whether it stops here for now, with a checkpoint, also at its very end."""
        return self.until is not None and self.progress.step >= self.until

    def shard(self) -> None:
        """Leave in this process its part of the model, where the placement does that. In place."""
        adapter = self.adapter
        adapter.tensors, adapter.initial = self.placement.shard(
            self.base.model, adapter.name, adapter.tensors, adapter.initial, self.updater.optimizer
        )

    def close(self) -> None:
        self.run.close()
        self.placement.close()
