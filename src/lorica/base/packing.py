"""Padding-free batches through any transformers model whose attention can carry them.

The attention function is put into transformers' registry under a name of ours; rows lie end
to end, and their lengths travel as a keyword of the forward call. Whether an architecture
carries this is not looked up but tried: two rows laid end to end must give what each gives
alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.attention import through
from lorica.kernels.attention import attention_by_row

NAME = "lorica_rows"
UNKNOWN = ("softcap", "s_aux")  # keywords of attentions that attention_by_row does not compute


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, row_lengths: list[int], scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, front: tuple[Tensor, Tensor] | None = None, **other: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    for keyword in UNKNOWN:
        if other.get(keyword) is not None:
            raise ValueError(f"attention with {keyword}")
    mixed = attention_by_row(
        query, key, value, row_lengths, scale=scaling, dropout=dropout, window=sliding_window,
        causal=bool(getattr(module, "is_causal", True)), front=front,
    )  # fmt: skip
    return mixed.transpose(1, 2), None  # (1, T, H, D)


_BY_ROW = through(_attention)  # one function, so that a compiled model stays compiled


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside the block, `model` takes rows laid end to end, with ``row_lengths=[...]``."""
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


@torch.no_grad()
def why_not_packed(model: nn.Module) -> str | None:
    """None if rows laid end to end give what they give alone; else the reason, in words."""
    foreign: Any = model
    size = int(foreign.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    ids = (torch.arange(12, device=device) * 7 + 3).remainder(size).unsqueeze(0)
    rows = [5, 7]
    mode = model.training
    model.eval()
    try:
        alone = torch.cat([foreign(input_ids=part).logits for part in ids.split(rows, 1)], 1)
        places = torch.cat([torch.arange(n, device=device) for n in rows]).unsqueeze(0)
        with packed(model):
            together = foreign(
                input_ids=ids, position_ids=places, row_lengths=rows, use_cache=False
            ).logits
    except Exception as error:  # an unknown architecture may refuse in any way at all
        return (
            f"{type(model).__name__} refuses rows laid end to end ({type(error).__name__}: {error})"
        )
    finally:
        model.train(mode)
    off = (alone - together).abs().max() / alone.abs().max().clamp_min(1e-6)
    close = 1e-3 if alone.dtype == torch.float32 else 5e-2
    if off <= close:
        return None
    return f"{type(model).__name__} mixes rows that are laid end to end (difference {off:.2g})"
