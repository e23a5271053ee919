"""What stands in front of the rows of a batch, where each row has an adapter of its own.

B rows   T tokens   K key heads   D head size   N positions in front
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.attention import FRONT
from lorica.core.front import shifted

Parts = Sequence[tuple[Adapter, Tensor]]
"""The adapters at the decoder, and the numbers of their rows, (n,) on the device."""


def inputs_of(options: dict[str, Any]) -> Tensor:
    """Token ids (B, T) or their vectors (B, T, C), whichever a decoder is called with."""
    return next(options[k] for k in ("input_ids", "inputs_embeds") if options.get(k) is not None)


def enter_by_row(parts: Parts, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """`Adapter.enter` for each row: what stands in front is as long as the longest, and masked."""
    batch, tokens = inputs_of(options).shape[:2]
    places = shifted(decoder, options, 0).get("position_ids")
    places = None if places is None else places.expand(batch, tokens).clone()
    fronts: list[tuple[Tensor, Any]] = []
    for adapter, rows in parts:
        own = {
            k: v[rows] if isinstance(v, Tensor) and len(v) == batch else v
            for k, v in options.items()
        }
        entered = adapter.enter(decoder, own)
        fronts.append((rows, entered[FRONT]))
        if places is not None and "position_ids" in entered:
            places[rows] = entered["position_ids"].expand(len(rows), tokens)
    if not fronts:
        return options
    front = {i: _padded([(rows, f[i]) for rows, f in fronts], batch) for i in fronts[0][1]}
    moved = {} if places is None else {"position_ids": places}
    return {**options, **moved, FRONT: front}


def _padded(
    fronts: list[tuple[Tensor, tuple[Tensor, Tensor]]], batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(keys (B, K, N, D), values, seen (B, N)) of rows whose fronts differ in length."""
    first = fronts[0][1][0]
    n = max(keys.shape[1] for _, (keys, _) in fronts)
    made = [first.new_zeros(batch, first.shape[0], n, pair.shape[2]) for pair in fronts[0][1]]
    seen = torch.zeros(batch, n, dtype=torch.bool, device=first.device)
    for rows, pair in fronts:
        for whole, part in zip(made, pair, strict=True):
            whole[rows, :, : part.shape[1]] = part.to(whole.dtype)
        seen[rows, : pair[0].shape[1]] = True
    return made[0], made[1], seen
