"""Prepare a run before the weights of its base are read: its rows, and a learning rate."""

import torch

from lorica import progress
from lorica.base.added_tokens import add_tokens
from lorica.base.context_length import check_tokens
from lorica.base.describe import (
    beyond_training_notice,
    hidden_size,
    own_classes,
    quantised_as,
    row_limit,
    vocabulary_size,
)
from lorica.base.load import load_tokenizer
from lorica.base.offload import check_offload
from lorica.core.rates import default_rate
from lorica.data.load import Data, load_data
from lorica.errors import ConfigError
from lorica.training.auto_dtype import with_dtype
from lorica.training.config import TrainConfig

OPTIMIZERS = {"adamw": "AdamW", "paged_adamw": "AdamW", "sgd": "SGD"}


def check_base_named(config: TrainConfig) -> None:
    """Raises: ConfigError if nobody named the base: the default is a toy."""
    if "base" not in config.model_fields_set:
        raise ConfigError(
            "no base was named.",
            fix="--base with a folder or a hub id; --base bundled is the small model of this "
            "package, to try things out",
        )


def load_rows(config: TrainConfig) -> Data:
    """The rows of a run, tokenized for its base, whose weights are not read.

    A row may be as long as the context of the base, less the positions that the method uses.
    """
    _check_offload(config)  # reading a large file may take minutes
    reserved, limit = (
        config.build_method().positions(),
        row_limit(config.base, config.data.max_length),
    )
    tokenizer = add_tokens(load_tokenizer(config.base), config.data.add_tokens)
    data = load_data(
        config.data,
        tokenizer,
        seed=config.seed,
        max_length=None if limit is None else limit - reserved,
        labels=own_classes(config.base),
        new_classes=True,
    )
    if not config.data.add_tokens:
        for rows in (data.train, data.validation):
            check_tokens(rows, tokenizer, vocabulary_size(config.base))
    data.notices += beyond_training_notice(config.base, data.train.lengths)
    progress.announce(summary(config, data))
    return data


def _check_offload(config: TrainConfig) -> None:
    """Raises: ConfigError for an offload that cannot be on this machine and with this base."""
    if config.offload:
        on_cpu = torch.accelerator.current_accelerator(check_available=True) is None
        kind = quantised_as(config.base)
        check_offload(config.base, config.dtype, kind, config.offload, on_cpu=on_cpu)


def default_learning_rate(config: TrainConfig) -> float:
    """The default learning rate of a run's method on its base."""
    return default_rate(config.build_method(), config.optimizer, hidden_size(config.base))


def with_learning_rate(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The settings with a dtype, and a learning rate: where none is given, the method's own.

    Returns: a notice on what was chosen and why as well. Raises: what reading the base's
        configuration raises.
    """
    config = with_dtype(config)
    if config.learning_rate is not None:
        return config, []
    rate, name = default_learning_rate(config), config.method["name"]
    notice = (
        f"learning rate {rate:g}: the default of {name} with {OPTIMIZERS[config.optimizer]} at "
        f"hidden size {hidden_size(config.base) or 'unknown'} (lorica methods {name}); "
        "--learning_rate changes it"
    )
    return config.model_copy(update={"learning_rate": rate}), [notice]


def summary(config: TrainConfig, data: Data) -> str:
    """What a run does, in one line: method, base, rows, and what of them is learned."""
    if data.labels is not None:
        learns = f"{len(data.labels)} classes"
    else:
        tokens, labels = int(data.train.lengths.sum()), int(data.train.label_counts.sum())
        learns = f"{labels:,} of {tokens:,} tokens are learned"
    held = f" and {len(data.validation):,} validation" if len(data.validation) else ""
    return (
        f"{config.method['name']} on {config.base}: {len(data.train):,} training{held} rows of "
        f"{config.data.path}; {learns}"
    )
