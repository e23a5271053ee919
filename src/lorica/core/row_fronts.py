"""Keys and values in front of the rows of a batch, where each row has an adapter of its own.

B rows   T tokens   K key heads   D head size   N positions in front
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter
from lorica.core.attention import FRONT
from lorica.core.front import shift_positions

Parts = Sequence[tuple[Adapter, Tensor]]
"""The adapters at the decoder, and the numbers of their rows, (n,) on the device."""


def inputs_of(options: dict[str, Any]) -> Tensor:
    """Token ids (B, T) or their vectors (B, T, C), whichever a decoder is called with."""
    return next(options[k] for k in ("input_ids", "inputs_embeds") if options.get(k) is not None)


def enter_by_row(parts: Parts, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """`Adapter.enter` for each row. Shorter fronts are padded to the longest, and masked."""
    batch, tokens = inputs_of(options).shape[:2]
    positions = shift_positions(decoder, options, 0).get("position_ids")
    positions = None if positions is None else positions.expand(batch, tokens).clone()
    fronts: list[tuple[Tensor, Any]] = []
    for adapter, rows in parts:
        own = {
            k: v[rows] if isinstance(v, Tensor) and len(v) == batch else v
            for k, v in options.items()
        }
        entered = adapter.enter(decoder, own)
        fronts.append((rows, entered[FRONT]))
        if positions is not None and "position_ids" in entered:
            positions[rows] = entered["position_ids"].expand(len(rows), tokens)
    if not fronts:
        return options
    front = {i: _padded([(rows, f[i]) for rows, f in fronts]) for i in fronts[0][1]}
    moved = {} if positions is None else {"position_ids": positions}
    return {**options, **moved, FRONT: front}


def _padded(
    fronts: list[tuple[Tensor, tuple[Tensor, Tensor]]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(keys (b, K, N, D), values, seen (b, N), rows (b,)) of the rows that have a front.

    The fronts of adapters may differ in length.
    """
    first = fronts[0][1][0]
    n = max(keys.shape[1] for _, (keys, _) in fronts)
    parts = []
    for rows, pair in fronts:
        padded = [F.pad(t.to(first.dtype), (0, 0, 0, n - t.shape[1])) for t in pair]
        seen = torch.arange(n, device=first.device) < pair[0].shape[1]
        parts.append([t.expand(len(rows), *t.shape) for t in (*padded, seen)] + [rows])
    keys, values, seen, rows = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return keys, values, seen, rows
