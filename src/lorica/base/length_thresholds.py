"""Lengths in a model's config past which a row, or a batch, is computed in another way.

    original_max_position_embeddings   LongRoPE, Llama-4's temperature in Ministral
    max_position_embeddings            dynamic RoPE; the length of position tables and masks
    attention_chunk_size, floor_scale  Llama-4's chunks and temperature
    sliding_window, window_size ...    windows of attention

A threshold that the model reads at every call can be lowered for a trial. Others are tried at their
own length if the model is small enough.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorica.base.dynamic_rope import CACHED_LENGTHS, is_dynamic, reset
from lorica.base.model_view import model_view, rows_of

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
WORK = {"cpu": 5e8}
"""Parameters times tokens of the longest row that is tried; WORK_GPU elsewhere."""
WORK_GPU = 2e12


@dataclass(frozen=True)
class Threshold:
    """One setting of the config.

    movable: it can be lowered. tried: a trial may cross it; otherwise it is only known to exist.
    """

    name: str
    tokens: int
    movable: bool
    tried: bool = True

    @property
    def is_window(self) -> bool:
        return "window" in self.name


def length_thresholds(model: nn.Module) -> list[Threshold]:
    """The thresholds that may matter to `model`, the shortest first."""
    device = next(model.parameters()).device.type
    size = sum(p.numel() for p in model.parameters())
    reach = WORK.get(device, WORK_GPU) / max(size, 1)
    dynamic = any(is_dynamic(module) for module in model.modules())
    thresholds: dict[tuple[str, int], Threshold] = {}
    for _, name, tokens in _settings(model):
        if tokens < LOWERED and name not in MOVABLE:
            continue
        if name in MOVABLE or (name == POSITIONS and dynamic):
            thresholds[name, tokens] = Threshold(name, tokens, movable=True)
        elif TABLES.search(name) and _has_table(model, tokens):
            thresholds[name, tokens] = Threshold(name, tokens, movable=False, tried=tokens <= reach)
        elif FIXED.search(name) and tokens <= reach:
            thresholds[name, tokens] = Threshold(name, tokens, movable=False)
    return sorted(thresholds.values(), key=lambda threshold: threshold.tokens)


@contextmanager
def lowered(model: nn.Module, threshold: Threshold) -> Iterator[int]:
    """Inside the block a movable threshold is LOWERED tokens. Yields the threshold in tokens."""
    if not threshold.movable or threshold.tokens <= LOWERED:
        yield max(threshold.tokens, 4)
        return
    keys = {threshold.name, *(CACHED_LENGTHS if threshold.name == POSITIONS else ())}
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
            if is_dynamic(module):
                reset(module)


def _settings(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, int]]:
    """(its dict, name, tokens) of every integer of the text model's config."""
    foreign: Any = model
    pending: list[dict[str, Any]] = [vars(foreign.config.get_text_config())]
    while pending:
        owner = pending.pop()
        for name, value in owner.items():
            if isinstance(value, dict):
                pending.append(value)
            elif type(value) is int and value > 1:
                yield owner, str(name), value


def _has_table(model: nn.Module, positions: int) -> bool:
    """Whether a buffer, or an embedding other than that of tokens, has a row per position."""
    tokens = model_view(model).input_embeddings
    near = range(positions, positions + 3)
    for module in model.modules():
        if any(n in near for b in module._buffers.values() if b is not None for n in b.shape):
            return True
        if module is not tokens and rows_of(module) in near:
            return True
    return False
