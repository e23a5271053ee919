"""Packed (padding-free) batches in any transformers model whose attention supports them.

Our attention function is registered in transformers under its own name; rows are concatenated to
one sequence, and their lengths are a keyword of the forward call. Whether an architecture supports
this is not looked up but tried, see base.batching.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.batching import Batching, batching_of
from lorica.base.few_blocks import tried
from lorica.base.model_view import is_causal
from lorica.core.attention import with_adapters
from lorica.core.modes import in_mode
from lorica.kernels.attention import Shared, attention_by_row

NAME = "lorica_rows"
UNKNOWN = ("softcap", "s_aux")  # keywords of attentions that attention_by_row does not compute


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    front: tuple[Tensor, Tensor] | None = None,
    row_shared: Shared | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    for keyword in UNKNOWN:
        if other.get(keyword) is not None:
            raise ValueError(f"attention with {keyword}")
    mixed = attention_by_row(
        query,
        key,
        value,
        row_lengths,
        scale=scaling,
        dropout=dropout,
        window=sliding_window,
        causal=is_causal(module),
        front=front,
        shared=row_shared,
    )
    return mixed.transpose(1, 2), None  # (1, T, H, D)


_BY_ROW = with_adapters(_attention)  # one function, so that a compiled model stays compiled


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside the block, `model` takes packed batches, with the keyword ``row_lengths=[...]``.

    ``row_shared=[...]``: the shared prefix of each row; see kernels.attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _BY_ROW)
    AttentionMaskInterface.register(NAME, _no_mask)
    foreign: Any = model
    before = foreign.config._attn_implementation
    foreign.set_attn_implementation(NAME)
    try:
        yield
    finally:
        foreign.set_attn_implementation(before)


def packing_of(model: nn.Module) -> Batching:
    """How rows may be packed; see base.batching."""
    return batching_of(model, "packed", packed_rows)


def why_not_packed(model: nn.Module) -> str | None:
    """Why rows cannot be packed; None: packed rows have the logits that they have alone."""
    return packing_of(model).refused


@torch.no_grad()
def packed_rows(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The logits (T, V) of each row, all of them packed."""
    foreign: Any = model
    lengths = [len(row) for row in rows]
    places = torch.cat([torch.arange(n, device=rows[0].device) for n in lengths]).unsqueeze(0)
    with packed(model):
        logits = foreign(
            input_ids=torch.cat(rows).unsqueeze(0),
            position_ids=places,
            row_lengths=lengths,
            use_cache=False,
        ).logits
    return list(logits[0].split(lengths))


def why_not_shared(model: nn.Module) -> str | None:
    """Why rows cannot share a prefix; None: each row has the logits that it has alone.

    Tried in training mode, and only for models whose rows can be packed.
    """
    return tried(model, lambda: _why_not_shared(model), lambda why: why is None)


@torch.no_grad()
def _why_not_shared(model: nn.Module) -> str | None:
    foreign: Any = model
    size = int(foreign.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    ids = (torch.arange(16, device=device) * 7 + 3).remainder(size).unsqueeze(0)
    first, prefix = 10, 8  # the second row: 8 tokens of the first row, and 6 of its own
    row = torch.cat([ids[:, :prefix], ids[:, first:]], 1)
    places = torch.arange(16, device=device)
    places[first:] -= first - prefix
    try:
        with packed(model), in_mode(model, training=True):
            alone = foreign(input_ids=row, row_lengths=[row.shape[1]], use_cache=False).logits
            together = foreign(
                input_ids=ids,
                position_ids=places.unsqueeze(0),
                use_cache=False,
                row_lengths=[first, 16 - first],
                row_shared=[[], [(0, prefix)]],
            ).logits
    except Exception as failure:  # a short context, or an architecture that trains otherwise
        return f"{type(model).__name__} refuses it ({type(failure).__name__}: {failure})"
    error = (alone[:, prefix:] - together[:, first:]).abs().max()
    error /= alone.abs().max().clamp_min(1e-6)
    if error <= (1e-3 if alone.dtype == torch.float32 else 5e-2):
        return None
    return f"{type(model).__name__} has dropout, or mixes rows outside of its attention"
