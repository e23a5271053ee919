"""Divide the rows of a step into micro-batches: by rows, or by tokens.

By rows, a micro-batch costs what its rows happen to cost. By tokens, the micro-batches of a step
cost about the same: the longest row goes to the lightest micro-batch, then the next longest, and so
on (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969, longest processing time first).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it imports torch, and `lorica plan` counts micro-batches without torch
    from lorica.base.batching import Batching


@dataclass(frozen=True)
class MicroBatchLimit:
    """What goes through the model at a time, at most.

    rows: number of rows. tokens: of all of them, with padding; None: any number. A row with more
    tokens goes alone.
    """

    rows: int
    tokens: int | None = None

    def __str__(self) -> str:
        return f"{self.rows} rows" if self.tokens is None else f"{self.tokens} tokens"


def micro_batches(
    lengths: Sequence[int], limit: MicroBatchLimit, batching: "Batching", *, packed: bool
) -> list[list[int]]:
    """Indices of the rows of each micro-batch.

    lengths: (N,) tokens of the rows. batching: what the architecture can batch.
    packed: rows are concatenated; otherwise each is padded to the longest of its micro-batch.
    """
    rows = 1 if batching.refused else limit.rows
    if limit.tokens is None:
        return batching.groups(lengths, rows)
    shared = math.inf if batching.shared is None else batching.shared
    alone = [[i] for i, length in enumerate(lengths) if length > shared]
    short = [i for i, length in enumerate(lengths) if length <= shared]
    tokens = limit.tokens
    if packed and batching.total is not None:
        tokens = min(tokens, batching.total)
    groups = by_tokens([lengths[i] for i in short], rows, tokens, packed=packed)
    return [[short[i] for i in group] for group in groups] + alone


def by_tokens(lengths: Sequence[int], rows: int, tokens: int, *, packed: bool) -> list[list[int]]:
    """Indices of the rows of each micro-batch of at most `rows` rows and `tokens` tokens."""
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    divide = _even if packed else _padded
    return [sorted(group) for group in divide(longest_first, lengths, rows, tokens)]


def halved(
    limit: MicroBatchLimit, lengths: Sequence[int], batching: "Batching", *, packed: bool
) -> MicroBatchLimit | None:
    """A limit for half of what memory did not hold; None if every row goes alone already.

    limit, lengths, batching, packed: of the step, as in `micro_batches`.
    """
    groups = micro_batches(lengths, limit, batching, packed=packed)
    if max(map(len, groups), default=0) <= 1:
        return None
    if limit.tokens is None:
        return MicroBatchLimit(math.ceil(limit.rows / 2))
    several = [group for group in groups if len(group) > 1]
    largest = max(_tokens([lengths[i] for i in group], packed) for group in several)
    return MicroBatchLimit(limit.rows, math.ceil(largest / 2))


def over_budget_notice(lengths: np.ndarray, tokens: int | None) -> list[str]:
    """A notice on rows that are longer than a micro-batch may be; [] without any.

    lengths: (N,) tokens of the rows.
    """
    if tokens is None or not (long := int((lengths > tokens).sum())):
        return []
    notice = (
        f"{long:,} of {len(lengths):,} rows are longer than max_tokens_per_micro_batch "
        f"({tokens:,}) and go through the model alone; the longest has {lengths.max():,} tokens"
    )
    return [notice]


def _tokens(lengths: Sequence[int], packed: bool) -> int:
    """Tokens that a micro-batch of rows of these lengths computes."""
    return sum(lengths) if packed else max(lengths) * len(lengths)


def _even(order: list[int], lengths: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """As few micro-batches as hold the rows, of about the same number of tokens each.

    order: indices of the rows, the longest first.
    """
    total = sum(lengths[i] for i in order)
    fewest = max(math.ceil(total / tokens), math.ceil(len(order) / rows))
    for count in range(fewest, len(order) + 1):
        groups: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            open_groups = [g for g in range(count) if len(groups[g]) < rows]
            lightest = min(open_groups, key=sizes.__getitem__)
            if groups[lightest] and sizes[lightest] + lengths[i] > tokens:
                break
            groups[lightest].append(i)
            sizes[lightest] += lengths[i]
        else:
            return [group for group in groups if group]
    return [[i] for i in order]


def _padded(order: list[int], lengths: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """Rows of similar length together, which need the least padding. order: as in `_even`."""
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < rows:
            longest = lengths[groups[-1][0]]
            if longest * (len(groups[-1]) + 1) <= tokens:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups
