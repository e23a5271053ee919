"""Adapters inside attention, through transformers' registry of attention functions.

Attention layers call a function that the registry names, with queries, keys and values after
any rotation. While an attention site or the decoder is adapted, that function is ours: it calls
the one that was there, lets keys and values stand in front of every row, and hands the mixed
values to the adapters of the site. What stands in front never enters the key-value cache. It
stays in sight of every position, also of those whose sliding window has left the row's start.

    B rows   H heads   K key heads   T tokens   S tokens seen   D head size   C features
    N positions in front

transformers is imported when it is needed: the models that come here are its own.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.bank import LayerAdapters
from lorica.core.blocks import routing
from lorica.core.route import ByRow, Everywhere
from lorica.core.site import ADAPTERS
from lorica.errors import LoricaError, TargetError

MARK = "lorica_"
FRONT = "lorica_front"
"""Keyword of the decoder's call: layer_idx -> (keys, values) of shape (K, N, D) that every
position of every row sees, before its own; or (B, K, N, D) each, and (B, N) bool: what it sees."""
HEARD = "lorica_heard"
"""Keyword of the decoder's call: a dict that gets layer_idx -> (keys, values), (1, K, T, D)."""
MADE = "lorica_made"
"""Keyword of an attention layer's call: a list that gets its query, keys and values; no more is
computed than these."""
CAN_FRONT = ("sdpa", "eager")
ELSEWHERE = "choose a method that acts on linear layers, such as lora"
Attention = Callable[..., tuple[Tensor, Any]]


def install(model: nn.Module) -> str:
    """Let the model's attention go through ours. In place.

    Returns: the name of the attention that it had, for `uninstall`.
    Raises: TargetError if the model's attention cannot be reached.
    """
    foreign: Any = model
    before = _named(model)
    if not hasattr(model, "set_attn_implementation"):
        raise _beyond_reach(model)
    if not before.startswith(MARK):
        ours = registered(before)
        foreign.set_attn_implementation(ours)  # warns, and does nothing, where it cannot
        if foreign.config._attn_implementation != ours:
            raise _beyond_reach(model)
    return before


def uninstall(model: nn.Module, before: str) -> None:
    """Give the model back the attention that it had. In place."""
    foreign: Any = model
    foreign.set_attn_implementation(before)


@contextmanager
def listening(module: nn.Module) -> Iterator[None]:
    """Inside the block, calls of a decoder or an attention layer go through ours: no gradients,
    no dropout. Attention and modes come back.

    Raises: TargetError for whatever the module raises: it is not made for such calls.
    """
    config: Any = getattr(module, "config", None)
    before = _named(module)
    modes = [(m, m.training) for m in module.modules()]
    if not before.startswith(MARK):
        config._attn_implementation = registered(before)
    module.eval()
    try:
        with torch.no_grad():
            yield
    except LoricaError:
        raise
    except Exception as error:  # an unknown architecture may refuse in any way at all
        raise TargetError(
            f"{type(module).__name__} refuses what adapters ask of its attention.",
            why=f"{type(error).__name__}: {error}",
            fix=ELSEWHERE,
        ) from error
    finally:
        config._attn_implementation = before
        for m, training in modes:
            m.training = training


@cache
def registered(before: str) -> str:
    """Put the attention function named `before` into the registry, with adapters.

    Returns: its name there.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    base = _eager if before == "eager" else ALL_ATTENTION_FUNCTIONS[before]
    AttentionInterface.register(MARK + before, through(base, fronts=before in CAN_FRONT))
    if before in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():  # others are given no mask
        AttentionMaskInterface.register(MARK + before, ALL_MASK_ATTENTION_FUNCTIONS[before])
    return MARK + before


def _named(module: nn.Module) -> str:
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is None:
        raise _beyond_reach(module)
    return name


def _beyond_reach(module: nn.Module) -> TargetError:
    return TargetError(
        f"{type(module).__name__} has an attention of its own that adapters cannot reach: it does "
        "not use transformers' attention functions.",
        fix=ELSEWHERE,
    )


def _eager(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Any]:
    """What "eager" means to a layer: the function of that name in its own file."""
    own = getattr(sys.modules[type(module).forward.__module__], "eager_attention_forward", None)
    if own is None:
        raise _beyond_reach(module)
    return own(module, *args, **options)


def through(base: Attention, *, fronts: bool = True) -> Attention:
    """`base`, an attention function of the registry, with adapters.

    fronts: `base` takes the masks that `widened` makes, or a keyword `front`.
    """

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        heard, front, made = (options.pop(k, None) for k in (HEARD, FRONT, MADE))
        if made is not None:
            made += [query, key, value]
            return value.new_zeros(*query.shape[:3], value.shape[-1]).transpose(1, 2), None
        if heard is not None:
            heard[module.layer_idx] = key, value
        if front is not None:
            if not fronts:
                raise TargetError(
                    "under this attention nothing can stand in front of the rows.",
                    attention=getattr(module.config, "_attn_implementation", "").removeprefix(MARK),
                    fix='set_attn_implementation("sdpa") on the model first',
                )
            keys, values, *seen = front[module.layer_idx]  # type: ignore[index]
            if "row_lengths" in options:  # the rows' attention puts them before each row
                options["front"] = keys.to(key.dtype), values.to(value.dtype)
            else:
                causal = options.get("is_causal")
                causal = getattr(module, "is_causal", True) if causal is None else causal
                mask = widened(mask, query, key, keys.shape[-2], causal, *seen)
                key, value = before(key, keys), before(value, values)
        mixed, weights = base(module, query, key, value, mask, **options)  # (B, T, H, D)
        if isinstance(adapters := module._modules.get(ADAPTERS), LayerAdapters):
            scale = options.get("scaling") or query.shape[-1] ** -0.5
            heads = adapters.adapt_attention(query, mixed.transpose(1, 2), scale)
            mixed = heads.transpose(1, 2)
        return mixed, weights

    return attention


def before(own: Tensor, front: Tensor) -> Tensor:
    """(K, N, D) before each row of (B, K, S, D); or (B, K, N, D), a row before each."""
    return torch.cat([front.to(own.dtype).expand(len(own), *front.shape[-3:]), own], dim=2)


def widened(
    mask: Tensor | None,
    query: Tensor,
    key: Tensor,
    n: int,
    causal: bool,
    ahead: Tensor | None = None,
) -> Tensor | None:
    """The mask of keys with `n` more in front that all see, or that `ahead` (B, n) bool says.

    mask: (B, 1, T, S), bool or added to the scores, or None. None stands for a row from its
    first token on, where keys behind the T-th are places of the cache that are still empty; or,
    where T is 1, for a token that sees all.
    """
    t, s = query.shape[2], key.shape[2]
    if mask is None:
        if ahead is None and (t == 1 or not causal):
            return None
        place = torch.arange(s, device=query.device)
        upto = place[:t] if causal and t > 1 else place[-1:].expand(t)
        mask = (place <= upto.unsqueeze(1)).expand(1, 1, t, s)
    floats = mask.is_floating_point()
    seen = (mask.new_zeros if floats else mask.new_ones)(*mask.shape[:-1], n)
    if ahead is not None:
        mask, seen = (m.expand(len(ahead), *m.shape[1:]) for m in (mask, seen))
        hidden = torch.finfo(mask.dtype).min if floats else False
        seen = seen.masked_fill(~ahead[:, None, None, :], hidden)
    return torch.cat([seen, mask], dim=-1)


def made(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Query, keys and values, (1, H or K, N, D), that an attention layer makes of x (N, C).

    Without rotation, and without any mixing. Call it where the layer's attention is ours.
    Raises: TargetError if the layer does not show them.
    """
    names = inspect.signature(layer.forward).parameters
    found: list[Tensor] = []
    unturned = x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)  # cos and sin of no angle
    options = {"position_embeddings": unturned, "attention_mask": None}
    layer.forward(
        x.unsqueeze(0), **{k: v for k, v in options.items() if k in names}, **{MADE: found}
    )
    if len(found) != 3:
        raise _beyond_reach(layer)
    return found


@contextmanager
def alone(module: nn.Module, adapter: nn.Module) -> Iterator[None]:
    """Inside the block `adapter` of `module` acts and no other, where each row of a batch has its
    own: the call that it makes for itself has no rows of the batch."""
    adapters = module._modules.get(ADAPTERS)
    if not isinstance(adapters, LayerAdapters) or not isinstance(
        adapters.model_bank.current, ByRow
    ):
        yield
        return
    names = [name for name, own in adapters.items() if own is adapter]
    with routing(adapters.model_bank, Everywhere.of(names)):
        yield


def named(decoder: nn.Module, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments, all by name."""
    names = [p for p in inspect.signature(decoder.forward).parameters if p != "self"]
    return {**dict(zip(names, args, strict=False)), **options}
