"""Which condition each row of a batch has, and so which tokens of a layer's input.

Rows are apart, (B, ..., I), or lie end to end, (1, T, I): then their lengths say where each is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorica.errors import DataError


@dataclass(frozen=True)
class Rows:
    """which: the number of its condition, for each row. lengths: of rows that lie end to end.

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
        """(start, stop, condition) of each row among the tokens of x, one after another.

        Neighbours that have one condition are taken together.
        Raises: DataError if x has not these rows.
        """
        tokens = x.shape[:-1].numel()
        if self.lengths is None:
            _check(len(x), len(self.which), "rows")
            lengths: Sequence[int] = [tokens // len(x)] * len(x)
        else:
            _check(tokens, sum(self.lengths), "tokens")
            lengths = self.lengths
        found: list[tuple[int, int, int]] = []
        stop = 0
        for which, length in zip(self.which, lengths, strict=True):
            start, stop = stop, stop + length
            if found and found[-1][2] == which:
                start = found.pop()[0]
            found.append((start, stop, which))
        return found


def _check(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise DataError(
            f"a layer sees {found} {what}, and conditions are set for {wanted}.",
            fix="set_conditions(model, ...) for this very batch; and adapt no layer that is "
            "given other rows than the batch has (experts, an output head)",
        )
