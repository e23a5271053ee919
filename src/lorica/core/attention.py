"""Adapters inside attention, through transformers' registry of attention functions.

Attention layers call a function that the registry names, with queries, keys and values after
any rotation. While an attention site or the decoder is adapted, that function is ours: it calls
the one that was there, lets keys and values stand in front of every row, and hands the mixed
values to the adapters of the site. What stands in front never enters the key-value cache.

    B rows   H heads   K key heads   T tokens   D head size   N positions in front

transformers is imported when it is needed: the models that come here are its own.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.site import PORT
from lorica.errors import TargetError

MARK = "lorica_"
FRONT = "lorica_front"
"""Keyword of the decoder's call: for each layer_idx, (keys, values) of shape (K, N, D) that
every position of every row sees, before its own."""
HEARD = "lorica_heard"
"""Keyword of the decoder's call: a dict that gets layer_idx -> (keys, values), (1, K, T, D)."""
Attention = Callable[..., tuple[Tensor, Any]]


def install(model: nn.Module) -> str:
    """Let the model's attention go through ours. In place.

    Returns: the name of the attention that it had, for `uninstall`.
    Raises: TargetError if the model's attention cannot be reached.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    foreign: Any = model
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before is None or not hasattr(model, "set_attn_implementation"):
        raise TargetError(
            f"{type(model).__name__} does not use transformers' attention functions.",
            fix="choose a method that acts on linear layers, such as lora",
        )
    if before.startswith(MARK):
        return before
    under = before if before in ALL_ATTENTION_FUNCTIONS.valid_keys() else "sdpa"  # eager has none
    if not getattr(model, "_supports_sdpa", True) and under == "sdpa":
        raise TargetError(
            f"{type(model).__name__} has an attention of its own that adapters cannot reach.",
            fix="choose a method that acts on linear layers, such as lora",
        )
    AttentionInterface.register(MARK + under, through(ALL_ATTENTION_FUNCTIONS[under]))
    AttentionMaskInterface.register(MARK + under, ALL_MASK_ATTENTION_FUNCTIONS[under])
    foreign.set_attn_implementation(MARK + under)
    return before


def uninstall(model: nn.Module, before: str) -> None:
    """Give the model back the attention that it had. In place."""
    foreign: Any = model
    foreign.set_attn_implementation(before)


def through(base: Attention) -> Attention:
    """`base`, an attention function of the registry, with adapters."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        heard, front = options.pop(HEARD, None), options.pop(FRONT, None)
        if heard is not None:
            heard[module.layer_idx] = key, value
        if front is not None:
            keys, values = front[module.layer_idx]
            if "row_lengths" in options:  # the rows' attention puts them before each row
                options["front"] = keys.to(key.dtype), values.to(value.dtype)
            else:
                mask = widened(mask, query, key, keys.shape[1], getattr(module, "is_causal", True))
                key, value = before(key, keys), before(value, values)
        mixed, weights = base(module, query, key, value, mask, **options)  # (B, T, H, D)
        if isinstance(port := getattr(module, PORT, None), nn.Module):
            scale = options.get("scaling") or query.shape[-1] ** -0.5
            heads = mixed.transpose(1, 2)
            for adapter in port.acting():  # type: ignore[operator]
                heads = adapter.attend(query, heads, scale)
            mixed = heads.transpose(1, 2)
        return mixed, weights

    return attention


def before(own: Tensor, front: Tensor) -> Tensor:
    """(K, N, D) before each row of (B, K, T, D)."""
    return torch.cat([front.to(own.dtype).expand(len(own), *front.shape), own], dim=2)


def widened(mask: Any, query: Tensor, key: Tensor, n: int, causal: bool) -> Tensor | None:
    """The mask of keys with `n` more in front that all see.

    mask: None, (B, K) of 0 and 1, or (B, 1, T, K), bool or added to the scores.
    """
    t, k = query.shape[2], key.shape[2]
    if mask is None:
        if t == 1 or not causal:
            return None
        place = torch.arange(k, device=query.device)
        mask = (place <= place[k - t :].unsqueeze(1)).expand(1, 1, t, k)
    if not isinstance(mask, Tensor):
        raise TargetError(
            "this attention's mask is no tensor, so nothing can stand in front of the rows.",
            fix='set_attn_implementation("sdpa") on the model first',
        )
    seen = mask.new_zeros if mask.is_floating_point() else mask.new_ones
    return torch.cat([seen(*mask.shape[:-1], n), mask], dim=-1)


def shifted(decoder: nn.Module, options: dict[str, Any], n: int) -> dict[str, Any]:
    """The decoder's call with every token `n` positions later than it would stand."""
    names = inspect.signature(decoder.forward).parameters
    if "position_ids" not in names:
        return options  # it knows no positions
    places = options.get("position_ids")
    if places is None:
        inputs = next(options[key] for key in ("input_ids", "inputs_embeds")
                      if options.get(key) is not None)  # fmt: skip
        cache = options.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        places = torch.arange(past, past + inputs.shape[1], device=inputs.device).unsqueeze(0)
    return {**options, "position_ids": places + n}


def heard(decoder: nn.Module, embedded: Tensor, like: dict[str, Any]) -> Sequence[Any]:
    """What each attention layer makes of vectors in place of tokens: (keys, values), (K, N, D).

    embedded: (N, d), in the space of the input embeddings, at positions 0 .. N - 1.
    like: the keyword arguments of the call that this one precedes.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    options: dict[str, Any] = {HEARD: found, "use_cache": False}
    if "row_lengths" in like:
        options["row_lengths"] = [len(embedded)]
    decoder.forward(inputs_embeds=embedded.unsqueeze(0), **options)
    return [(key.squeeze(0), value.squeeze(0)) for _, (key, value) in sorted(found.items())]


def named(decoder: nn.Module, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments, all by name."""
    names = [p for p in inspect.signature(decoder.forward).parameters if p != "self"]
    return {**dict(zip(names, args, strict=False)), **options}
