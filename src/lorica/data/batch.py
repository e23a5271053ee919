"""Examples to tensors, padding-free or padded, with the label tokens listed.

B rows, T positions. The model is asked only where an answer counts: `predict` holds the flat
positions (into B * T) whose next token is a label, `targets` those labels. A row's last
position predicts nothing, so no row ever predicts the first token of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorica.data.tokenise import Example
from lorica.errors import DataError, listed

LEAST = 8
"""Tokens at the beginning that are worth sharing: fewer cost more to gather than to compute."""


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (1, T) packed, (B, T) padded
    position_ids: Tensor  # as input_ids; from 0 in each row
    attention_mask: Tensor | None  # (B, T) padded: 1 where a token is real; None when packed
    lengths: list[int]  # tokens of each row; of its own, where it shares its beginning
    predict: Tensor  # (N,) flat positions whose next token is a label
    targets: Tensor  # (N,) the label tokens
    row: Tensor  # (N,) the row that each belongs to
    labels: Tensor | None  # (rows,) classes
    where: tuple[str, ...]
    tokens: int  # of all rows, padding not counted
    conditions: tuple[str, ...] | None = None  # of each row
    shared: list[list[tuple[int, int]]] | None = None  # see kernels.attention

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def labels_of(batch: Batch) -> Tensor:
    """The label tokens at their own places, (B, T), and -100 elsewhere."""
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.predict + 1] = batch.targets
    return labels


def pack(examples: Sequence[Example], *, share: bool = False) -> Batch:
    """Rows laid end to end in one line, positions from 0 in each.

    share: a row that begins as another one does, with LEAST tokens or more, leaves them out: they
        stand in the line once, and `shared` says where. The rows are put in another order then.
    """
    if share:
        examples = sorted(examples, key=lambda e: (e.condition or "", e.ids))
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    shared: list[list[tuple[int, int]]] = []
    places: list[list[int]] = []  # in the line, of every token of every row
    for i, example in enumerate(examples):
        n = _alike(examples[i - 1], example) if share and i else 0
        begins = places[-1][:n] if n else []
        own = range(len(ids), len(ids) + len(example.ids) - n)
        places.append([*begins, *own])
        shared.append(_runs(begins))
        ids += example.ids[n:]
        positions += range(n, len(example.ids))
        lengths.append(len(own))
    line, at = (torch.tensor(part, dtype=torch.long)[None] for part in (ids, positions))
    return _batch(examples, line, at, None, lengths, places, shared if any(shared) else None)


def join(batches: Sequence[Batch]) -> Batch:
    """Packed batches as one, laid end to end; rows of different ones share nothing."""
    first, at, after = batches[0], 0, 0
    if len(batches) == 1:
        return first
    shared: list[list[tuple[int, int]]] = []
    predict, row = [], []
    for batch in batches:
        begins = batch.shared or [[] for _ in batch.lengths]
        shared += [[(start + at, stop + at) for start, stop in parts] for parts in begins]
        predict.append(batch.predict + at)
        row.append(batch.row + after)
        at, after = at + batch.input_ids.shape[1], after + len(batch.lengths)
    return Batch(
        torch.cat([b.input_ids for b in batches], 1),
        torch.cat([b.position_ids for b in batches], 1),
        None,
        [length for b in batches for length in b.lengths],
        torch.cat(predict),
        torch.cat([b.targets for b in batches]),
        torch.cat(row),
        None,
        tuple(where for b in batches for where in b.where),
        sum(b.tokens for b in batches),
        shared=shared if any(shared) else None,
    )


def _alike(one: Example, other: Example) -> int:
    """How many tokens at the beginning both share; 0 if it is not worth it, or not the same: the
    adapter of another condition computes something else. The last token of `other` is its own."""
    if one.condition != other.condition:
        return 0
    pairs = enumerate(zip(one.ids, other.ids[:-1], strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(one.ids), len(other.ids) - 1))
    return n if n >= LEAST else 0


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as (start, stop) of those that follow one another."""
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = found[-1][0], place + 1
        else:
            found.append((place, place + 1))
    return found


def pad(examples: Sequence[Example], pad_id: int) -> Batch:
    """One row each, filled up on the right."""
    lengths = [len(e.ids) for e in examples]
    width = max(lengths)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : lengths[i]] = torch.tensor(example.ids)
        mask[i, : lengths[i]] = 1
    positions = torch.arange(width).expand_as(ids) * mask
    places = [list(range(i * width, i * width + n)) for i, n in enumerate(lengths)]
    return _batch(examples, ids, positions, mask, lengths, places)


def _batch(
    examples: Sequence[Example],
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    lengths: list[int],
    places: list[list[int]],
    shared: list[list[tuple[int, int]]] | None = None,
) -> Batch:
    # (row, flat position, label) of every learned token; learned[0] never is one.
    asked = [
        (i, place[t - 1], example.ids[t])
        for i, (example, place) in enumerate(zip(examples, places, strict=True))
        for t in range(1, len(example.ids))
        if example.learned[t]
    ]
    row, predict, targets = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).unbind(1)
    classes = [e.label for e in examples if e.label is not None]
    labels = torch.tensor(classes) if len(classes) == len(examples) and classes else None
    where = tuple(e.where for e in examples)
    told = tuple(e.condition for e in examples if e.condition is not None)
    if told and len(told) < len(examples):
        raise DataError(
            f"{len(told)} of {len(examples)} rows have a condition.",
            rows=listed(e.where for e in examples if e.condition is None),
            fix="give one to every row, or to none",
        )
    tokens = sum(len(e.ids) for e in examples)
    return Batch(
        ids,
        positions,
        mask,
        lengths,
        predict,
        targets,
        row,
        labels,
        where,
        tokens,
        told or None,
        shared,
    )
