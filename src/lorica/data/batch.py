"""Collate examples to tensors: packed or padded, with the label positions listed.

B rows, T tokens. A packed batch concatenates its rows to one sequence of shape (1, T), with
positions that restart in each row; a padded batch has shape (B, T). `label_positions` are flat
indices into B * T: the model predicts a label there. The last position of a row is never one of
them, so no row predicts the first token of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorica.data.example import Example
from lorica.data.shared_prefix import shared_prefix
from lorica.errors import DataError, listed


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (1, T) packed, (B, T) padded
    position_ids: Tensor  # like input_ids; from 0 in each row
    attention_mask: Tensor | None  # (B, T) padded: 1 at real tokens; None when packed
    lengths: list[int]  # tokens of each row, without a prefix that it shares with an earlier row
    label_positions: Tensor  # (N,) flat positions whose next token is a label
    targets: Tensor  # (N,) the labels: token ids
    label_rows: Tensor  # (N,) the row of each label
    labels: Tensor | None  # (B,) classes of a classifier
    where: tuple[str, ...]  # file and line of each row
    tokens: int  # of all rows; padding is not counted
    conditions: tuple[str, ...] | None = None  # of each row
    shared_prefixes: list[list[tuple[int, int]]] | None = None  # see kernels.attention

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def labels_of(batch: Batch) -> Tensor:
    """(B, T) labels as transformers takes them: -100 where a token is not a label."""
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.label_positions + 1] = batch.targets
    return labels


def pack(examples: Sequence[Example], *, share_prefixes: bool = False) -> Batch:
    """Concatenate rows to one packed batch.

    share_prefixes: rows that begin with the same tokens, MIN_SHARED_PREFIX or more, have them
        in the batch once; `Batch.shared_prefixes` says where. The rows are sorted for it.
    """
    if share_prefixes:
        examples = sorted(examples, key=lambda e: (e.condition or "", e.ids))
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    shared: list[list[tuple[int, int]]] = []
    indices: list[list[int]] = []  # into ids, of every token of every row
    for i, example in enumerate(examples):
        n = shared_prefix(examples[i - 1], example) if share_prefixes and i else 0
        prefix = indices[-1][:n] if n else []
        own = range(len(ids), len(ids) + len(example.ids) - n)
        indices.append([*prefix, *own])
        shared.append(_ranges(prefix))
        ids += example.ids[n:]
        positions += range(n, len(example.ids))
        lengths.append(len(own))
    input_ids, position_ids = (torch.tensor(x, dtype=torch.long)[None] for x in (ids, positions))
    return _batch(
        examples, input_ids, position_ids, None, lengths, indices, shared if any(shared) else None
    )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Packed batches as one. Rows of different batches share no prefix."""
    first, offset, rows = batches[0], 0, 0
    if len(batches) == 1:
        return first
    shared: list[list[tuple[int, int]]] = []
    label_positions, label_rows = [], []
    for batch in batches:
        prefixes = batch.shared_prefixes or [[] for _ in batch.lengths]
        shared += [[(a + offset, b + offset) for a, b in prefix] for prefix in prefixes]
        label_positions.append(batch.label_positions + offset)
        label_rows.append(batch.label_rows + rows)
        offset, rows = offset + batch.input_ids.shape[1], rows + len(batch.lengths)
    return Batch(
        torch.cat([b.input_ids for b in batches], 1),
        torch.cat([b.position_ids for b in batches], 1),
        None,
        [length for b in batches for length in b.lengths],
        torch.cat(label_positions),
        torch.cat([b.targets for b in batches]),
        torch.cat(label_rows),
        None,
        tuple(where for b in batches for where in b.where),
        sum(b.tokens for b in batches),
        shared_prefixes=shared if any(shared) else None,
    )


def _ranges(indices: list[int]) -> list[tuple[int, int]]:
    """Rising indices as (start, stop) of each consecutive run."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = ranges[-1][0], index + 1
        else:
            ranges.append((index, index + 1))
    return ranges


def pad(examples: Sequence[Example], pad_id: int) -> Batch:
    """One row of the tensors for each example, padded on the right."""
    lengths = [len(e.ids) for e in examples]
    width = max(lengths)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : lengths[i]] = torch.tensor(example.ids)
        mask[i, : lengths[i]] = 1
    positions = torch.arange(width).expand_as(ids) * mask
    indices = [list(range(i * width, i * width + n)) for i, n in enumerate(lengths)]
    return _batch(examples, ids, positions, mask, lengths, indices)


def _batch(
    examples: Sequence[Example],
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    lengths: list[int],
    indices: list[list[int]],
    shared_prefixes: list[list[tuple[int, int]]] | None = None,
) -> Batch:
    # (row, flat position that predicts it, token id) of every label; token 0 is never a label.
    labelled = [
        (i, index[t - 1], example.ids[t])
        for i, (example, index) in enumerate(zip(examples, indices, strict=True))
        for t in range(1, len(example.ids))
        if example.learned[t]
    ]
    rows, label_positions, targets = (
        torch.tensor(labelled, dtype=torch.long).reshape(-1, 3).unbind(1)
    )
    classes = [e.label for e in examples if e.label is not None]
    labels = torch.tensor(classes) if len(classes) == len(examples) and classes else None
    conditions = tuple(e.condition for e in examples if e.condition is not None)
    if conditions and len(conditions) < len(examples):
        raise DataError(
            f"{len(conditions)} of {len(examples)} rows have a condition.",
            rows=listed(e.where for e in examples if e.condition is None),
            fix="give every row a condition, or none",
        )
    return Batch(
        ids,
        positions,
        mask,
        lengths,
        label_positions,
        targets,
        rows,
        labels,
        tuple(e.where for e in examples),
        sum(len(e.ids) for e in examples),
        conditions or None,
        shared_prefixes,
    )
