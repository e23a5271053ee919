"""A value that follows from tensors, kept for as long as they cannot have changed.

Generation asks for the same thing at every token. A version counter alone does not tell: a fused
optimizer writes to tensors without counting. So nothing is kept while gradients are on, nor while
a tensor has one, without which no optimizer moves it; what was kept is dropped then.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by key."""

    def __init__(self) -> None:
        self.values: dict[Hashable, T] = {}
        self.version: Hashable = None

    def __call__(self, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
        """make(), or what it gave for `key` when `tensors` were as they are now."""
        if torch.compiler.is_compiling():
            return make()
        if torch.is_grad_enabled() or any(t.grad is not None for t in tensors):
            self.clear()
            return make()
        version = tuple((t._version, t.data_ptr()) for t in tensors)
        if version != self.version:
            self.clear()
            self.version = version
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]

    def clear(self) -> None:
        self.values.clear()
