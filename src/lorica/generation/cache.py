"""A key-value cache of dense slots: each row of a generation owns one, and rows come and go.

A forward pass covers consecutive slots. Its tokens are written at their positions, and attention
reads a view of the slots up to the longest row: nothing is copied as rows grow. The last column of
every slot is spare: padding of a pass is written there, and nothing reads it.

    S slots   M rows of a pass   T tokens of a pass   K key heads   D head size
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

FIRST_CAPACITY = 64
"""Columns of the first allocation; they are doubled as rows grow."""


class SlotCache(Cache):
    """keys, values: (S, K, capacity + 1, D) of each layer, allocated by its first tokens."""

    def __init__(self, slots: int, max_length: int):
        super().__init__(layers=[])
        self.slots, self.max_length = slots, max_length
        self.capacity = min(FIRST_CAPACITY, max_length)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.first, self.stop, self.longest, self.tokens = 0, 0, 0, 0
        self._index: tuple[Any, ...] = ()

    def start_pass(self, first: int, columns: Tensor, longest: int) -> None:
        """Set where the next forward pass writes and reads.

        first: the slot of its first row. columns: (M, T), the position of each token; -1 for
            padding. longest: columns that attention reads.
        """
        rows, self.tokens = columns.shape
        self.first, self.stop, self.longest = first, first + rows, longest
        numbers = torch.arange(first, self.stop, device=columns.device).unsqueeze(1)
        self._index = numbers, slice(None), columns
        if longest > self.capacity:
            self.capacity = min(max(longest, 2 * self.capacity), self.max_length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the tokens of a pass, (M, K, T, D) each. Returns: (M, K, longest, D) views."""
        return (
            self._written(self.keys, layer_idx, key_states),
            self._written(self.values, layer_idx, value_states),
        )

    def _written(self, layers: dict[int, Tensor], layer_idx: int, new: Tensor) -> Tensor:
        slots = layers.get(layer_idx)
        if slots is None or slots.shape[2] <= self.capacity:
            slots = layers[layer_idx] = self._grown(slots, new)
        slots[self._index] = new.transpose(1, 2)
        return slots[self.first : self.stop, :, : self.longest]

    def _grown(self, slots: Tensor | None, new: Tensor) -> Tensor:
        # Zeros: what is masked is multiplied by 0, and must be finite.
        grown = new.new_zeros(self.slots, new.shape[1], self.capacity + 1, new.shape[3])
        if slots is not None:
            grown[:, :, : slots.shape[2] - 1] = slots[:, :, :-1]
        return grown

    def move(self, source: int, target: int, length: int) -> None:
        """Move the first `length` columns of one slot to another. The first is left with zeros."""
        for tensors in (self.keys, self.values):
            for slots in tensors.values():
                slots[target, :, :length] = slots[source, :, :length]
                slots[source, :, :length] = 0

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: numbers that are not finite would reach the rows after it."""
        for tensors in (self.keys, self.values):
            for slots in tensors.values():
                slots[slot].zero_()

    # What models ask of a cache where they count positions or make masks themselves:

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.longest - self.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.longest, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.max_length
