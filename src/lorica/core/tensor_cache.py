"""A cache of values that are computed from tensors, for generation: it needs them at every token.

The version counter of a tensor alone does not show that it changed: a fused optimizer writes
without counting. So nothing is cached while gradients are on, or while a tensor has a gradient,
without which no optimizer changes it; the cache is cleared then.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class TensorCache(Generic[T]):
    """Values by key."""

    def __init__(self) -> None:
        self.values: dict[Hashable, T] = {}
        self.version: Hashable = None

    def __call__(self, tensors: Sequence[Tensor], key: Hashable, compute: Callable[[], T]) -> T:
        """compute(), or its cached result for `key` if `tensors` have not changed since."""
        if torch.compiler.is_compiling():
            return compute()
        if torch.is_grad_enabled() or any(t.grad is not None for t in tensors):
            self.clear()
            return compute()
        version = tuple((t._version, t.data_ptr()) for t in tensors)
        if version != self.version:
            self.clear()
            self.version = version
        if key not in self.values:
            self.values[key] = compute()
        return self.values[key]

    def clear(self) -> None:
        self.values.clear()
