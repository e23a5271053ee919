"""Forward passes of a model over the slots of a cache: any rows, each at positions of its own.

transformers' models take a finished mask (M, 1, T, S), one for each type of layer where there are
several; padding of a pass sees the first column alone, so that its numbers stay finite. Models
that read positions out of the mask (ALiBi) are given a mask of columns (M, S) instead, which is
exact where the rows of a pass have no padding in it.

    M rows of a pass   T tokens of a pass   S columns that it reads   V vocabulary
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.base.batching import dtype_of
from lorica.errors import ConfigError
from lorica.generation.cache import SlotCache

MaskKind = Literal["positions", "columns"]
"""positions: finished masks (M, 1, T, S). columns: (M, S), and the model makes its own of it."""
PADDING = -1
"""The position of padding in a pass."""
Window = tuple[str, int] | None


class SlotForward:
    """A model with its slots."""

    def __init__(self, model: nn.Module, slots: int, max_length: int, masks: MaskKind):
        foreign: Any = model
        self.model, self.mask_kind = model, masks
        self.cache = SlotCache(slots, max_length)
        self.device = next(model.parameters()).device
        accepted = inspect.signature(foreign.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._windows = layer_windows(foreign.config.get_text_config())
        self._columns = torch.arange(max_length, device=self.device)
        dtype = dtype_of(model)
        self._hidden = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=self.device)
        self._visible = torch.zeros((), dtype=dtype, device=self.device)

    def last_logits(self, first: int, ids: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits (M, V) of the last token of each row. Its keys and values stay in its slot.

        first: the slot of the first row; the others are in those behind it.
        ids, positions: (M, T); positions are PADDING in front of a row that is shorter than others.
        longest: one more than the highest position.
        """
        self.cache.start_pass(first, positions, longest)
        options = {**self._options, "attention_mask": self._mask(positions, longest)}
        if self._takes_positions:
            options["position_ids"] = positions.clamp_min(0)
        foreign: Any = self.model
        out = foreign(input_ids=ids, past_key_values=self.cache, use_cache=True, **options)
        return out.logits[:, -1]

    def _mask(self, positions: Tensor, longest: int) -> Tensor | dict[str, Tensor]:
        columns = self._columns[:longest]
        if self.mask_kind == "columns":
            return (columns <= positions[:, -1:]).long()
        at = positions.clamp_min(0)[:, None, :, None]
        masks = [(kind, self._layer_mask(columns, at, w)) for kind, w in self._windows]
        return masks[0][1] if masks[0][0] == "" else dict(masks)

    def _layer_mask(self, columns: Tensor, at: Tensor, window: Window) -> Tensor:
        """What a layer adds to its scores, (M, 1, T, S)."""
        hidden = columns > at
        if window is not None:
            kind, size = window
            start = at - size + 1 if kind == "sliding" else at // size * size
            hidden = hidden | (columns < start)
        return torch.where(hidden, self._hidden, self._visible)


def layer_windows(config: Any) -> list[tuple[str, Window]]:
    """(layer type, what its layers see) for each type of layer; "" where the config has no types.

    What layers see: None is all; ("sliding", n) the last n tokens; ("chunked", n) the tokens of
    their chunk. As transformers' `create_masks_for_generate` decides.
    Raises: ConfigError for a type that is no attention.
    """
    sizes = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}
    windows: dict[str, Window] = {"full_attention": None}
    for kind, key in sizes.items():
        size = getattr(config, key, None)
        windows[f"{kind}_attention"] = None if size is None else (kind, size)
    if not hasattr(config, "layer_types"):
        return [("", next((window for window in windows.values() if window is not None), None))]
    types = sorted(set(config.layer_types or ()))
    if unknown := [kind for kind in types if kind not in windows]:
        raise ConfigError(f"layers of type {', '.join(unknown)} keep no keys and values by slot.")
    return [(kind, windows[kind]) for kind in types]
