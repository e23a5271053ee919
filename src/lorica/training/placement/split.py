"""The blocks of the base in another process; see training.split."""

from torch import nn

from lorica import progress
from lorica.base.load import DTYPES, LoadedModel
from lorica.core.schedule import Schedule
from lorica.training.config import TrainConfig
from lorica.training.placement.single import Single
from lorica.training.split.device import Device, connect
from lorica.training.split.kill_and_revive import KillAndRevive


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
