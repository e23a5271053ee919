"""Rows and the longest length: raise, drop, truncate or split, each counted in a notice."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorica.data.config import DataConfig, Overlong
from lorica.data.dataset import Dataset
from lorica.errors import ConfigError, DataError


@dataclass(frozen=True)
class Limited:
    examples: Dataset
    overlong: int  # rows that were longer than the limit
    unlearned: int  # rows without a label token, and so dropped
    notices: list[str]


def limit_of(config: DataConfig, max_length: int | None) -> int | None:
    """The longest row in tokens: what the recipe says, at most what the base takes."""
    if config.max_length is None:
        return max_length
    if max_length is not None and config.max_length > max_length:
        raise ConfigError(
            f"data.max_length is {config.max_length}, but the base takes {max_length} tokens.",
            fix=f"lower it to {max_length}, or leave it out",
        )
    return config.max_length


def policy_of(config: DataConfig) -> Overlong:
    if config.overlong is not None:
        return config.overlong
    return "split" if Path(config.path).suffix.lower() == ".txt" else "raise"


def apply_length_limit(examples: Dataset, config: DataConfig, limit: int | None) -> Limited:
    """The examples that are trained on: none longer than `limit`, each with a label.

    Raises: DataError for overlong rows under `raise`, and if no row has a label token.
    """
    policy, kind = policy_of(config), examples.store.kind
    if policy == "split" and kind != "text":
        raise ConfigError(
            f"data.overlong is split, but the rows are {kind}; only plain text has no rows to "
            "keep whole.",
            fix="data.overlong: truncate, drop or raise",
        )
    if policy == "split" and limit is None:
        raise ConfigError(
            "data.overlong is split, but no length is given.", fix="set data.max_length"
        )
    lines, overlong = [], 0
    if limit is not None:
        long = examples.lengths > limit
        overlong = int(long.sum())
        if overlong:
            examples, line = _apply(policy, examples, long, config, limit)
            lines.append(line)
    return _with_labels(examples, config, overlong, lines)


def _apply(
    policy: Overlong, examples: Dataset, overlong: np.ndarray, config: DataConfig, limit: int
) -> tuple[Dataset, str]:
    """overlong: (N,) which of the examples are longer than `limit`."""
    long = examples.pick(overlong)
    facts = f"{len(long)} of {len(examples)} rows are longer than {limit} tokens"
    own = config.max_length is None  # the limit is the base's: no longer one is worth a try
    if policy == "drop" and overlong.all():
        fix = (
            f"data.max_length: {int(long.lengths.min())} keeps the shortest, if the base takes it; "
            "or data.overlong: truncate"
        )
        raise DataError(
            f"{config.path}: all {len(examples)} rows are longer than {limit} tokens, and "
            "data.overlong: drop leaves none.",
            rows=long.places(long.lengths),
            fix="data.overlong: truncate" if own else fix,
        )
    if policy == "drop":
        return examples.pick(~overlong), f"{facts} and are dropped: {long.places()}"
    if policy == "truncate":
        cut = replace(examples, stops=np.minimum(examples.stops, limit))
        return cut, f"{facts} and lose their ends: {long.places()}"
    if policy == "split":
        blocks = _blocks(examples, limit)
        return blocks, f"{facts} and are split: {len(blocks)} rows in all"
    most = int(np.argmax(long.lengths))
    longest = int(long.lengths[most])
    fix = f"data.max_length: {longest} if the base takes it; or data.overlong: drop or truncate"
    raise DataError(
        f"{config.path}: {facts}.",
        rows=long.places(long.lengths),
        longest=f"{longest} tokens, {long[most].where}",
        fix="data.overlong: drop or truncate" if own else fix,
    )


def _blocks(examples: Dataset, limit: int) -> Dataset:
    """Consecutive stretches of `limit` tokens; the first token of each is only read."""
    counts = -(-examples.lengths // limit)
    rows, stops = np.repeat(examples.rows, counts), np.repeat(examples.stops, counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(examples.starts, counts) + number * limit
    return replace(
        examples, rows=rows, starts=starts, stops=np.minimum(starts + limit, stops), blocks=True
    )


def _with_labels(examples: Dataset, config: DataConfig, overlong: int, lines: list[str]) -> Limited:
    if examples.store.kind == "label":
        return Limited(examples, overlong, 0, lines)
    learns = examples.labels > 0
    if learns.all() and len(examples):
        return Limited(examples, overlong, 0, lines)
    kept, empty = examples.pick(learns), examples.pick(~learns)
    if not len(kept):
        cut = overlong > 0 and policy_of(config) == "truncate"
        raise DataError(
            f"{config.path}: no row has a token to learn: "
            + ("truncating cut the answers off." if cut else "no row has an answer."),
            rows=empty.places(),
            fix="raise data.max_length" if cut else "give rows with an answer",
        )
    lines = [*lines, f"{len(empty)} rows have nothing to learn and are dropped: {empty.places()}"]
    return Limited(kept, overlong, len(empty), lines)
