"""A low-rank branch for each row of a batch: y = B(c) A(c) x, where c is the row's condition.

Rows that are apart take one batched product. Rows that lie end to end are multiplied with the A
of every condition at once, what is not a token's own is put to zero, and so with every B: two
plain products whatever the lengths, for C times the work. `row_by_row` is the reference.

    C conditions   B batch   T tokens   I, O features   R rank
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lorica.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Which condition each row has, 0 <= which < C.

    which: (B,). own: (T, C) 1 where a token has the condition, if rows lie end to end.
    """

    which: Tensor
    own: Tensor | None

    @classmethod
    def of(cls, which: Sequence[int], lengths: Sequence[int] | None) -> "Rows":
        """Raises: DataError if there are not as many conditions as rows."""
        numbers = torch.tensor(which)
        if lengths is None:
            return cls(numbers, None)
        if len(lengths) != len(which):
            raise DataError(f"{len(which)} conditions are set for {len(lengths)} rows.",
                            fix="give one for each row")  # fmt: skip
        tokens = numbers.repeat_interleave(torch.tensor(lengths))
        return cls(numbers, F.one_hot(tokens, max(which) + 1).float())

    def to(self, device: torch.device) -> "Rows":
        own = None if self.own is None else self.own.to(device)
        return Rows(self.which.to(device), own)


def branch(x: Tensor, a: Tensor, b: Tensor, rows: Rows | None) -> Tensor:
    """B A x, with A and B of each row's condition.

    x: (B, ..., I), or (1, T, I) end to end. a: (C, R, I). b: (C, O, R). rows: None: C is 1.
    Returns: (..., O). Raises: DataError if x has not these rows.
    """
    if rows is None:
        return F.linear(F.linear(x, a[0]), b[0])
    if rows.own is None:
        _check(len(x), len(rows.which), "rows")
        which = rows.which.to(x.device)
        h = x.reshape(len(x), -1, x.shape[-1]) @ a[which].mT  # (B, T, R)
        return (h @ b[which].mT).view(*x.shape[:-1], -1)
    _check(x.shape[:-1].numel(), len(rows.own), "tokens")
    h = F.linear(x, a.flatten(0, 1)).unflatten(-1, a.shape[:2])  # (1, T, C, R)
    h = h * rows.own.to(h).unsqueeze(-1)
    return F.linear(h.flatten(-2), b.transpose(0, 1).flatten(1))


def row_by_row(x: Tensor, a: Tensor, b: Tensor, rows: Rows | None) -> Tensor:
    """`branch`, written out."""
    if rows is None:
        return x @ a[0].T @ b[0].T
    if rows.own is None:
        pairs = zip(x, rows.which, strict=True)
        return torch.stack([row @ a[i].T @ b[i].T for row, i in pairs])
    pairs = zip(x.flatten(0, -2), rows.own.argmax(1), strict=True)
    return torch.stack([t @ a[i].T @ b[i].T for t, i in pairs]).view(*x.shape[:-1], -1)


def _check(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise DataError(
            f"a layer sees {found} {what}, and conditions are set for {wanted}.",
            fix="set_conditions(model, ...) for this very batch; and adapt no layer that is "
            "given other rows than the batch has (experts, an output head)",
        )
