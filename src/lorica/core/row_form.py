"""What an adapter does at one linear layer, as numbers that many adapters can be stacked in.

    y' = (y + b a x) * size + shift

Serving computes this for every row of a batch with the form of the row's own adapter. A method
gives it in `Adapter.row_form`; one that cannot be written so acts by its `before` and `after`.

    I  in_features   O  out_features   R  rank, may be 0
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowForm:
    """a: (R, I), b: (O, R), with the scale in it. size, shift: (O,); None: 1, and 0."""

    a: Tensor
    b: Tensor
    size: Tensor | None = None
    shift: Tensor | None = None

    @property
    def r(self) -> int:
        return len(self.a)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.b, self.size, self.shift) if t is not None]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def copied_to(self, like: Tensor) -> "RowForm":
        """A copy in the dtype and on the device of `like`, in memory of its own."""
        a, b, size, shift = (
            None
            if t is None
            else t.detach().to(like, copy=True, memory_format=torch.contiguous_format)
            for t in (self.a, self.b, self.size, self.shift)
        )
        assert a is not None and b is not None
        return RowForm(a, b, size, shift)
