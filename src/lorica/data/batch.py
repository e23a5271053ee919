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


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (1, T) packed, (B, T) padded
    position_ids: Tensor  # as input_ids; from 0 in each row
    attention_mask: Tensor | None  # (B, T) padded: 1 where a token is real; None when packed
    lengths: list[int]  # tokens of each row
    predict: Tensor  # (N,) flat positions whose next token is a label
    targets: Tensor  # (N,) the label tokens
    row: Tensor  # (N,) the row that each belongs to
    labels: Tensor | None  # (rows,) classes
    where: tuple[str, ...]
    conditions: tuple[str, ...] | None = None  # of each row

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(examples: Sequence[Example]) -> Batch:
    """Rows laid end to end in one line, positions from 0 in each."""
    lengths = [len(e.ids) for e in examples]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    ids = torch.tensor([i for e in examples for i in e.ids], dtype=torch.long)
    positions = torch.cat([torch.arange(n) for n in lengths]) if lengths else ids
    return _batch(examples, ids[None], positions[None], None, lengths, starts)


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
    starts = [i * width for i in range(len(examples))]
    return _batch(examples, ids, positions, mask, lengths, starts)


def _batch(
    examples: Sequence[Example],
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    lengths: list[int],
    starts: list[int],
) -> Batch:
    # (row, flat position, label) of every learned token; learned[0] never is one.
    asked = [
        (i, start + t - 1, example.ids[t])
        for i, (example, start) in enumerate(zip(examples, starts, strict=True))
        for t in range(1, len(example.ids))
        if example.learned[t]
    ]
    row, predict, targets = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).unbind(1)
    classes = [e.label for e in examples if e.label is not None]
    labels = torch.tensor(classes) if len(classes) == len(examples) and classes else None
    where = tuple(e.where for e in examples)
    told = tuple(e.condition for e in examples if e.condition is not None)
    if told and len(told) < len(examples):
        raise DataError(f"{len(told)} of {len(examples)} rows have a condition.",
                        rows=listed(e.where for e in examples if e.condition is None),
                        fix="give one to every row, or to none")  # fmt: skip
    return Batch(ids, positions, mask, lengths, predict, targets, row, labels, where, told or None)
