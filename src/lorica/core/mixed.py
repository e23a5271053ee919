"""Batches whose rows each have an adapter of their own: see lorica.mixed in core.attach.

This is the plain form, and the reference for any faster one: at every site the rows of one
adapter are taken together, adapted, and put back.

    B rows   T tokens   K key heads   D head size   N positions in front
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.attention import FRONT
from lorica.core.front import shifted

Parts = Sequence[tuple[Adapter, Tensor]]
"""The adapters that rows of a batch have at a site, and the numbers of their rows."""


def by_row(parts: Parts, x: Tensor, act: Callable[[Adapter, Tensor], Tensor]) -> Tensor:
    """`x` (B, ...) with the rows of each adapter replaced by act(adapter, their numbers)."""
    for adapter, rows in parts:
        x = x.index_copy(0, rows, act(adapter, rows).to(x.dtype))
    return x


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
        some = {
            k: v[rows] if isinstance(v, Tensor) and len(v) == batch else v
            for k, v in options.items()
        }
        entered = adapter.enter(decoder, some)
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
