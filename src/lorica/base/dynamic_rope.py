"""Dynamic RoPE, whose angles depend on the longest row that the model has met.

transformers keeps the angles of that row, so that the logits of a row would depend on the rows
before it. They are reset before every call.
"""

from typing import Any

from torch import nn

CACHED_LENGTHS = ("original_max_seq_len", "max_seq_len_cached")
"""Where a dynamic RoPE keeps lengths."""


def reset_before_each_call(model: nn.Module) -> None:
    """Register a hook on every dynamic RoPE that resets its angles. In place."""
    for module in model.modules():
        if is_dynamic(module):
            module.register_forward_pre_hook(reset)


def is_dynamic(module: nn.Module) -> bool:
    """Whether `module` is a dynamic RoPE of transformers."""
    return "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, CACHED_LENGTHS[0])


def reset(module: nn.Module, *_: Any) -> None:
    """Restore the angles of the length of training. In place."""
    rope: Any = module
    by_layer = rope.rope_type if isinstance(rope.rope_type, dict) else {"": rope.rope_type}
    for layer, kind in by_layer.items():
        prefix = f"{layer}_" if layer else ""
        angles = getattr(rope, f"{prefix}original_inv_freq", None)
        if "dynamic" in str(kind) and angles is not None:
            now = module.get_buffer(f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", angles.to(now.device), persistent=False)
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
