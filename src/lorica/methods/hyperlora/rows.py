"""Which condition each row of a batch has, and so which tokens of a layer's input.

Rows are either the batch dimension, (B, ..., I), or segments of a packed batch, (1, T, I), whose
lengths are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorica.errors import DataError


@dataclass(frozen=True)
class Rows:
    """which: the index of the condition of each row. lengths: of the segments of a packed batch.

    Raises: DataError if there are not as many conditions as rows.
    """

    which: tuple[int, ...]
    lengths: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.lengths is not None and len(self.lengths) != len(self.which):
            raise DataError(
                f"{len(self.which)} conditions are set for {len(self.lengths)} rows.",
                fix="give one for each row",
            )

    def spans(self, x: Tensor) -> list[tuple[int, int, int]]:
        """(start, stop, condition) of the rows among the flattened tokens of x.

        Neighbours with the same condition are joined.
        Raises: DataError if x has other rows.
        """
        tokens = x.shape[:-1].numel()
        if self.lengths is None:
            _check(len(x), len(self.which), "rows")
            lengths: Sequence[int] = [tokens // len(x)] * len(x)
        else:
            _check(tokens, sum(self.lengths), "tokens")
            lengths = self.lengths
        spans: list[tuple[int, int, int]] = []
        stop = 0
        for which, length in zip(self.which, lengths, strict=True):
            start, stop = stop, stop + length
            if spans and spans[-1][2] == which:
                start = spans.pop()[0]
            spans.append((start, stop, which))
        return spans


def _check(actual: int, expected: int, what: str) -> None:
    if actual != expected:
        raise DataError(
            f"a layer received {actual} {what}, and conditions are set for {expected}.",
            fix="call set_conditions(model, ...) for this batch, and adapt no layer whose input "
            "has other rows than the batch (experts, an output head)",
        )
