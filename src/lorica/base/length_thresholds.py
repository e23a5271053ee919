"""Lengths of a model's config past which a row, or a batch, is computed in another way.

    original_max_position_embeddings   LongRoPE, Llama-4's temperature in Ministral
    max_position_embeddings            dynamic RoPE; the length of position tables and masks
    attention_chunk_size, floor_scale  Llama-4's chunks and temperature
    sliding_window, window_size ...    windows of attention

A threshold that the code reads at every call can be lowered for a trial. Others are tried at their
own length where the model is small enough for it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

LOWERED = 8
MOVABLE = (
    "original_max_position_embeddings",
    "attention_chunk_size",
    "floor_scale",
    "sliding_window",
)
FIXED = re.compile(r"window|chunk|block_size|local_attention|floor")
POSITIONS = "max_position_embeddings"
TABLES = re.compile(r"max_pos|max_seq|n_positions|n_ctx|context_length")
CACHED = ("original_max_seq_len", "max_seq_len_cached")
"""Where a dynamic RoPE keeps it."""
WORK = {"cpu": 5e8}
"""Parameters times tokens of the longest row that is tried; WORK_GPU elsewhere."""
WORK_GPU = 2e12


@dataclass(frozen=True)
class Threshold:
    """One setting of the config.

    movable: it can be lowered. tried: rows may reach it; else it is only known to be there.
    """

    name: str
    tokens: int
    movable: bool
    tried: bool = True

    @property
    def is_window(self) -> bool:
        return "window" in self.name


def thresholds(model: nn.Module) -> list[Threshold]:
    """What may matter to this model, the shortest first."""
    device = next(model.parameters()).device.type
    size = sum(p.numel() for p in model.parameters())
    reach = WORK.get(device, WORK_GPU) / max(size, 1)
    dynamic = any(_is_dynamic(module) for module in model.modules())
    found: dict[tuple[str, int], Threshold] = {}
    for _, name, tokens in _settings(model):
        if tokens < LOWERED and name not in MOVABLE:
            continue
        if name in MOVABLE or (name == POSITIONS and dynamic):
            found[name, tokens] = Threshold(name, tokens, movable=True)
        elif TABLES.search(name) and _has_table(model, tokens):
            found[name, tokens] = Threshold(name, tokens, movable=False, tried=tokens <= reach)
        elif FIXED.search(name) and tokens <= reach:
            found[name, tokens] = Threshold(name, tokens, movable=False)
    return sorted(found.values(), key=lambda threshold: threshold.tokens)


def forget_lengths(model: nn.Module) -> None:
    """Let a dynamic RoPE start anew at every call. In place.

    It keeps the angles of the longest row that it met, so that what a row gives would depend on
    the rows before it.
    """
    for module in model.modules():
        if _is_dynamic(module):
            module.register_forward_pre_hook(_reset)


def _is_dynamic(module: nn.Module) -> bool:
    return "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, CACHED[0])


def _reset(module: nn.Module, *_: Any) -> None:
    rope: Any = module
    kinds = rope.rope_type if isinstance(rope.rope_type, dict) else {"": rope.rope_type}
    for layer, kind in kinds.items():
        prefix = f"{layer}_" if layer else ""
        angles = getattr(rope, f"{prefix}original_inv_freq", None)
        if "dynamic" in str(kind) and angles is not None:
            now = getattr(rope, f"{prefix}inv_freq")
            rope.register_buffer(f"{prefix}inv_freq", angles.to(now.device), persistent=False)
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


@contextmanager
def lowered(model: nn.Module, threshold: Threshold) -> Iterator[int]:
    """Inside the block a movable threshold lies at LOWERED tokens. Yields where it lies."""
    if not threshold.movable or threshold.tokens <= LOWERED:
        yield max(threshold.tokens, 4)
        return
    keys = {threshold.name, *(CACHED if threshold.name == POSITIONS else ())}
    places = [
        (owner, name)
        for owner, name, tokens in _settings(model)
        if name == threshold.name and tokens == threshold.tokens
    ]
    places += [
        (vars(m), key)
        for m in model.modules()
        for key in keys
        if vars(m).get(key) == threshold.tokens
    ]
    for owner, key in places:
        owner[key] = LOWERED
    try:
        yield LOWERED
    finally:
        for owner, key in places:
            owner[key] = threshold.tokens
        for module in model.modules():
            if _is_dynamic(module):
                _reset(module)


def _settings(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, int]]:
    """(where it stands, name, tokens) of every whole number of the text model's config."""
    foreign: Any = model
    waiting: list[dict[str, Any]] = [vars(foreign.config.get_text_config())]
    while waiting:
        owner = waiting.pop()
        for name, value in owner.items():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
                yield owner, str(name), value


def _has_table(model: nn.Module, positions: int) -> bool:
    """Some buffer, or an embedding that is not that of tokens, is as long as the positions."""
    foreign: Any = model
    tokens = foreign.get_input_embeddings()
    near = range(positions, positions + 3)
    for module in model.modules():
        if any(n in near for b in module._buffers.values() if b is not None for n in b.shape):
            return True
        rows = getattr(module, "num_embeddings", None)
        if module is not tokens and rows in near:
            return True
    return False
