"""Apply the longest length to the rows (data.overlong): raise, drop, truncate or split."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorica.data.config import DataConfig, Overlong
from lorica.data.dataset import Dataset
from lorica.errors import ConfigError, DataError


@dataclass(frozen=True)
class Fitted:
    """A dataset within the limit. overlong: rows above it. unlearned: rows without a label token,
    which are dropped."""

    dataset: Dataset
    overlong: int
    unlearned: int
    notices: list[str]


def limit_of(config: DataConfig, max_length: int | None) -> int | None:
    """The longest row in tokens: data.max_length, or the context of the base (`max_length`).

    Raises: ConfigError if data.max_length is above the context.
    """
    if config.max_length is None:
        return max_length
    if max_length is not None and config.max_length > max_length:
        raise ConfigError(
            f"data.max_length is {config.max_length}, but the base takes {max_length} tokens.",
            fix=f"lower it to {max_length}, or leave it out",
        )
    return config.max_length


def policy_of(config: DataConfig) -> Overlong:
    """data.overlong; by default split for a .txt file, otherwise raise."""
    if config.overlong is not None:
        return config.overlong
    return "split" if Path(config.path).suffix.lower() == ".txt" else "raise"


def apply_length_limit(dataset: Dataset, config: DataConfig, limit: int | None) -> Fitted:
    """The examples to train on: none is longer than `limit`, each has a label token.

    Raises: DataError for overlong rows under `raise`, and if no row has a label token.
    """
    policy, kind = policy_of(config), dataset.store.kind
    if policy == "split" and kind != "text":
        raise ConfigError(
            f"data.overlong is split, but the rows are {kind}; only plain text can be split "
            "anywhere.",
            fix="data.overlong: truncate, drop or raise",
        )
    if policy == "split" and limit is None:
        raise ConfigError(
            "data.overlong is split, but no length is given.", fix="set data.max_length"
        )
    notices, count = [], 0
    if limit is not None:
        overlong = dataset.lengths > limit
        count = int(overlong.sum())
        if count:
            dataset, notice = _apply(policy, dataset, overlong, config, limit)
            notices.append(notice)
    return _drop_unlearned(dataset, config, count, notices)


def _apply(
    policy: Overlong, dataset: Dataset, overlong: np.ndarray, config: DataConfig, limit: int
) -> tuple[Dataset, str]:
    """(the dataset within the limit, a notice). overlong: (N,) bool."""
    long = dataset.select(overlong)
    facts = f"{len(long)} of {len(dataset)} rows are longer than {limit} tokens"
    if policy == "raise" or (policy == "drop" and overlong.all()):
        raise _overlong_error(policy, long, facts, config, limit)
    if policy == "drop":
        return dataset.select(~overlong), f"{facts} and are dropped: {long.places()}"
    if policy == "truncate":
        truncated = replace(dataset, stops=np.minimum(dataset.stops, limit))
        return truncated, f"{facts} and lose their ends: {long.places()}"
    blocks = _split_into_blocks(dataset, limit)
    return blocks, f"{facts} and are split: {len(blocks)} rows in all"


def _overlong_error(
    policy: Overlong, long: Dataset, facts: str, config: DataConfig, limit: int
) -> DataError:
    """long: the rows above the limit: all rows if the policy is drop."""
    at_context = config.max_length is None  # the limit is the base's: a higher one cannot help
    if policy == "drop":
        fix = (
            f"data.max_length: {int(long.lengths.min())} keeps the shortest, if the base takes it; "
            "or data.overlong: truncate"
        )
        return DataError(
            f"{config.path}: all {len(long)} rows are longer than {limit} tokens, and "
            "data.overlong: drop leaves none.",
            rows=long.places(long.lengths),
            fix="data.overlong: truncate" if at_context else fix,
        )
    index = int(np.argmax(long.lengths))
    longest = int(long.lengths[index])
    fix = f"data.max_length: {longest} if the base takes it; or data.overlong: drop or truncate"
    return DataError(
        f"{config.path}: {facts}.",
        rows=long.places(long.lengths),
        longest=f"{longest} tokens, {long[index].where}",
        fix="data.overlong: drop or truncate" if at_context else fix,
    )


def _split_into_blocks(dataset: Dataset, limit: int) -> Dataset:
    """Consecutive blocks of `limit` tokens. The first token of a block is never a label."""
    counts = -(-dataset.lengths // limit)
    rows, stops = np.repeat(dataset.rows, counts), np.repeat(dataset.stops, counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(dataset.starts, counts) + number * limit
    return replace(
        dataset, rows=rows, starts=starts, stops=np.minimum(starts + limit, stops), blocks=True
    )


def _drop_unlearned(
    dataset: Dataset, config: DataConfig, overlong: int, notices: list[str]
) -> Fitted:
    """Raises: DataError if no row has a label token."""
    if dataset.store.kind == "label":
        return Fitted(dataset, overlong, 0, notices)
    has_labels = dataset.label_counts > 0
    if has_labels.all() and len(dataset):
        return Fitted(dataset, overlong, 0, notices)
    learned, unlearned = dataset.select(has_labels), dataset.select(~has_labels)
    if not len(learned):
        truncated = overlong > 0 and policy_of(config) == "truncate"
        raise DataError(
            f"{config.path}: no row has a token to learn: "
            + ("truncating cut the answers off." if truncated else "no row has an answer."),
            rows=unlearned.places(),
            fix="raise data.max_length" if truncated else "give rows with an answer",
        )
    notice = f"{len(unlearned)} rows have nothing to learn and are dropped: {unlearned.places()}"
    return Fitted(learned, overlong, len(unlearned), [*notices, notice])
