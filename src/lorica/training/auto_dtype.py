"""The dtype of a run where its settings say "auto". Without torch, unless they do."""

from lorica.training.config import TrainConfig


def with_dtype(config: TrainConfig) -> TrainConfig:
    """The settings with the dtype of the base's files in place of "auto".

    Raises: what reading the base's files raises.
    """
    if config.dtype != "auto":
        return config
    from lorica.base.describe import dtype_of_base

    return config.model_copy(update={"dtype": dtype_of_base(config.base)})
