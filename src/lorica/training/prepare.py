"""What a run needs before its first step: rows, and a base with the adapter on it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorica import progress
from lorica.base import packing
from lorica.base.added_tokens import grow, trained_with, with_tokens
from lorica.base.context_length import check_tokens
from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.base.load import (
    DTYPES,
    LoadedModel,
    context_length,
    hidden_size,
    load_tokenizer,
    own_classes,
)
from lorica.base.load import load as load_base
from lorica.base.load import vocabulary as embedded
from lorica.base.quantised_model import keep_unpacked
from lorica.core.attach import adapt, use
from lorica.core.condition import describe, informed, unused
from lorica.core.port import spec_of
from lorica.core.rates import default_rate
from lorica.core.schedule import Schedule
from lorica.core.unadapted import fused_experts
from lorica.data.batch import labels_of, pad
from lorica.data.example import Example
from lorica.data.load import Data, distinct_conditions, load_data
from lorica.errors import ConfigError
from lorica.evaluation.loss import score
from lorica.methods.lora import Lora
from lorica.training.config import TrainConfig
from lorica.training.idle import without_idle
from lorica.training.init_from import start_from
from lorica.training.split.device import Device, connect
from lorica.training.split.revive import KillAndRevive

OPTIMIZERS = {"adamw": "AdamW", "paged_adamw": "AdamW", "sgd": "SGD"}
PROBED = 32
MOST_PASSES = 1000
"""Passes over the rows that one optimizer step may make."""
SEEN, SEEN_AT_ONCE = 512, 8
"""Rows that a start which needs data is shown at most, and how many of them at a time."""
LEAST_LABELS = 512
"""Label tokens in these rows from which they alone are looked at; fewer span few directions."""


def check_base_named(config: TrainConfig) -> None:
    """Raises: ConfigError if nobody named the base: the default is a toy."""
    if "base" not in config.model_fields_set:
        raise ConfigError(
            "no base was named.",
            fix="--base with a folder or a hub id; --base bundled is the small model of this "
            "package, to try things out",
        )


def load_rows(config: TrainConfig) -> Data:
    """The rows of a run, tokenised for its base, whose weights stay unread.

    Positions of the context that the method takes for itself are not there for the rows.
    """
    taken = config.build_method().positions()
    tokenizer = with_tokens(load_tokenizer(config.base), config.data.add_tokens)
    data = load_data(
        config.data,
        tokenizer,
        seed=config.seed,
        max_length=None if (most := context_length(config.base)) is None else most - taken,
        labels=own_classes(config.base),
        new_classes=True,
    )
    if not config.data.add_tokens:
        for part in (data.train, data.validation):
            check_tokens(part, tokenizer, embedded(config.base))
    progress.announce(summary(config, data))
    return data


def own_rate(config: TrainConfig) -> float:
    """The default learning rate of a run's method on its base."""
    return default_rate(config.build_method(), config.optimizer, hidden_size(config.base))


def with_learning_rate(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The settings with a learning rate: where none is given, the method's own.

    Returns: a notice on what was chosen and why as well. Raises: what reading the base's
        configuration raises.
    """
    if config.learning_rate is not None:
        return config, []
    rate, name = own_rate(config), config.method["name"]
    notice = (
        f"learning rate {rate:g}: the default of {name} with {OPTIMIZERS[config.optimizer]} at "
        f"hidden size {hidden_size(config.base) or 'unknown'} (lorica methods {name}); "
        "--learning_rate changes it"
    )
    return config.model_copy(update={"learning_rate": rate}), [notice]


def base_for(config: TrainConfig, labels: list[str] | None) -> tuple[LoadedModel, Device | None]:
    """The base of a run. labels: the classes of its rows, if they have any.

    Returns: the device's side of a split run as well, connected to its cloud.
    """
    progress.announce(f"loading the base {config.base}")
    if config.split == "device":
        return connect(config.base, DTYPES[config.dtype], str(config.peer))
    base = load_base(
        config.base,
        dtype=config.dtype,
        labels=labels,
        quantisation=config.quantisation,
        double_quantisation=config.double_quantisation,
    )
    if tokens := config.data.add_tokens:
        before = load_tokenizer(config.base)
        with_tokens(base.tokenizer, tokens)
        if (rows := len(base.tokenizer)) > len(base.model.get_input_embeddings().weight):  # type: ignore[operator, union-attr]
            grow(base.model, before, base.tokenizer, rows)
    if config.unpacked_gib:
        base.notices.append(keep_unpacked(base.model, int(config.unpacked_gib * 2**30)))
    if config.gradient_checkpointing:
        model: Any = base.model  # the second name is that of transformers before 5.20
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return base, None


def identity_of(base: LoadedModel, config: TrainConfig) -> Fingerprint:
    """What a run that goes on must find again: every bit of the base, and its tokenizer."""
    return fingerprint(base.model, path=config.base, tokenizer=base.tokenizer, hashing="exact")


def add_adapter(base: LoadedModel, config: TrainConfig, data: Data, name: str) -> list[str]:
    """Put a run's adapter on its base; a classifier's head is always trained whole with it.

    In place; the adapter is the only active one afterwards. Returns: named lines.
    """
    told = distinct_conditions(data.train)
    layers, ids = trained_with(base.model, base.tokenizer, config.data.add_tokens)
    whole = list(dict.fromkeys([*config.modules_to_save, *base.head.whole, *layers]))
    method = informed(config.build_method(), base.model, told)
    exclude, lines = without_idle(base, config, method, whole)
    adapt(
        base.model,
        method,
        name=name,
        seed=config.seed,
        target_modules=config.target_modules,
        exclude_modules=exclude,
        layers_to_transform=config.layers_to_transform,
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
        modules_to_save=whole,
        trainable_token_indices=[*dict.fromkeys([*config.trainable_token_indices, *ids])],
    )
    every = distinct_conditions(data.train, data.validation)
    lines += unused(base.model, told) + describe(base.model, base.tokenizer, every)
    return lines + fused_experts(base.model)


def kill_and_revive(config: TrainConfig, device: Device | None) -> Schedule | None:
    """The schedule of a split run in which only a share of the sites takes part."""
    if device is None or config.active_share == 1:
        return None
    return KillAndRevive(
        device.adapters,
        device.active,
        share=config.active_share,
        interval=config.active_steps,
        seed=config.seed,
    )


def summary(config: TrainConfig, data: Data) -> str:
    """What a run does, in one line: method, base, rows, and what of them is learned."""
    if data.labels is not None:
        learns = f"{len(data.labels)} classes"
    else:
        tokens, labels = int(data.train.lengths.sum()), int(data.train.labels.sum())
        learns = f"{labels:,} of {tokens:,} tokens are learned"
    held = f" and {len(data.validation):,} validation" if len(data.validation) else ""
    return (
        f"{config.method['name']} on {config.base}: {len(data.train):,} training{held} rows of "
        f"{config.data.path}; {learns}"
    )


def vocabulary(base: LoadedModel) -> int | None:
    """How many tokens a language model chooses among; None: it is a classifier."""
    config: Any = base.model.config
    return None if base.labels is not None else config.get_text_config().vocab_size


def why_not_shared(base: LoadedModel, config: TrainConfig, name: str) -> str | None:
    """Why rows that begin alike cannot share what is computed of it; None: they can."""
    method = spec_of(base.model, name).method
    if config.split is not None:
        return "the run is split"
    if getattr(method, "dropout", 0):
        return "dropout is drawn anew for each row"
    with use(base.model):
        return packing.why_not_shared(base.model)


def complete_start(
    base: LoadedModel,
    config: TrainConfig,
    data: Data,
    adapter: Mapping[str, Tensor] | None,
    name: str,
) -> list[str]:
    """Start a new run from the adapter of another, or from what its rows show. In place.

    adapter: the tensors of the checkpoint that the run resumes from; None: the run is new.
    Returns: notices.
    """
    if config.init_from and adapter is None:
        return start_from(base, config.init_from, name, data)
    _start_from_rows(base, data.train, adapter, name)
    return []


def _start_from_rows(
    base: LoadedModel, rows: Sequence[Example], adapter: Mapping[str, Tensor] | None, name: str
) -> None:
    """Complete a LoRA whose start needs to see rows. In place.

    adapter: the tensors of a checkpoint, which has its start already, or None. Other methods and
        starts are left as they are.
    """
    method = spec_of(base.model, name).method
    if not isinstance(method, Lora) or not method.start.needs_data:
        return
    from lorica.inits.eva import calibrate, take_ranks

    if adapter is not None:
        take_ranks(base.model, adapter, name)
        return
    device = next(base.model.parameters()).device
    seen = [
        pad(rows[i : i + SEEN_AT_ONCE], base.tokenizer.pad_token_id or 0).to(device)
        for i in range(0, min(len(rows), SEEN), SEEN_AT_ONCE)
    ]
    given = [{"input_ids": b.input_ids, "attention_mask": b.attention_mask} for b in seen]
    if sum(len(b.targets) for b in seen) >= LEAST_LABELS:
        given = [{**g, "labels": labels_of(b)} for g, b in zip(given, seen, strict=True)]
    calibrate(base.model, given, name=name)


def rows_for(rows_per_step: int, rows: int) -> int:
    """`rows`. Raises: ConfigError if an optimizer step would pass over them again and again."""
    if rows_per_step > MOST_PASSES * rows:
        raise ConfigError(
            f"one optimizer step would take {rows_per_step:,} rows, and there are {rows:,}.",
            fix="lower gradient_accumulation_steps or micro_batch_size",
        )
    return rows


def lasting(base: str) -> str:
    """A local folder as an absolute path, so that the adapter finds it from anywhere."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def probe(model: nn.Module, rows: Sequence[Example], name: str) -> Callable[[], float]:
    """The mean loss on PROBED of the training rows, the same ones at every call and resume."""
    every = max(len(rows) // PROBED, 1)
    return partial(loss_of, model, rows[::every][:PROBED], name)


def loss_of(model: nn.Module, rows: Sequence[Example], name: str) -> float:
    """The mean loss with adapter `name` alone."""
    return held_out(model, rows, name)[0]


def held_out(model: nn.Module, rows: Sequence[Example], name: str) -> tuple[float, float]:
    """(mean loss, share of labels that are the first choice) with adapter `name` alone."""
    with use(model, name):
        scores = score(model, rows)
    return scores.loss, scores.accuracy
