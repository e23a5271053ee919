"""The attention functions of transformers: a registry, and a name in the config of each model."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lorica.core.attention import Attention, AttentionAccess


class TransformersAttention(AttentionAccess, name="transformers"):
    def name_of(self, module: nn.Module) -> str | None:
        return getattr(getattr(module, "config", None), "_attn_implementation", None)

    def select(self, model: nn.Module, name: str) -> bool:
        foreign: Any = model
        if not hasattr(model, "set_attn_implementation"):
            return False
        foreign.set_attn_implementation(name)  # warns, and does nothing, where it cannot
        return foreign.config._attn_implementation == name

    def register(self, name: str, like: str, wrap: Callable[[Attention], Attention]) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        base = _eager if like == "eager" else ALL_ATTENTION_FUNCTIONS[like]
        AttentionInterface.register(name, wrap(base))
        if like in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():  # others are given no mask
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[like])


def _eager(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Any]:
    """What "eager" means to a layer: the function of that name in its own file."""
    file = sys.modules[type(module).forward.__module__]
    own = getattr(file, "eager_attention_forward", None)
    if own is None:
        raise TransformersAttention.unreachable(module)
    return own(module, *args, **options)
