"""Adapters inside attention, through the attention function that a model's layers call.

Attention layers call a function that a registry names, with queries, keys and values after any
rotation. While an attention site or the decoder is adapted, that function is ours: it calls the
one that was there, puts keys and values in front of every row, and hands the result of the heads to
the adapters of the site. What stands in front never enters the key-value cache. Every position
sees it, also those whose sliding window has left the start of the row.

    B rows   H heads   K key heads   T tokens   S tokens seen   D head size   C features
    N positions in front
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.bank import LayerAdapters
from lorica.core.blocks import routing
from lorica.core.modes import in_mode
from lorica.core.route import ByRow, Everywhere
from lorica.core.site import ADAPTERS
from lorica.errors import LoricaError, TargetError
from lorica.registry import Named

PREFIX = "lorica_"
FRONT = "lorica_front"
"""Keyword of the decoder's call: layer_idx -> (keys, values) of shape (K, N, D) that every
position of every row sees, before its own; or (b, K, N, D) each, (b, N) bool: what of it is seen,
and (b,): the rows that have it."""
KEYS_VALUES = "lorica_keys_values"
"""Keyword of the decoder's call: a dict that gets layer_idx -> (keys, values), (1, K, T, D)."""
PROJECTED = "lorica_projected"
"""Keyword of an attention layer's call: a list that gets its query, keys and values; no more is
computed than these."""
CAN_FRONT = ("sdpa", "eager")
ELSEWHERE = "choose a method that acts on linear layers, such as lora"
Attention = Callable[..., tuple[Tensor, Any]]


class AttentionAccess(Named, family="lorica.base.attention"):
    """How a library of models names its attention functions; implemented in lorica.base."""

    def name_of(self, module: nn.Module) -> str | None:
        """The attention function that a model or one of its layers calls; None: it names none."""
        raise NotImplementedError

    def select(self, model: nn.Module, name: str) -> bool:
        """Let `model` call the function `name`. In place. Returns: whether it does now."""
        raise NotImplementedError

    def register(self, name: str, like: str, wrap: Callable[[Attention], Attention]) -> None:
        """Register wrap(the function `like`) as `name`; it gets the masks that `like` gets."""
        raise NotImplementedError

    @staticmethod
    def unreachable(module: nn.Module) -> TargetError:
        return TargetError(
            f"adapters cannot reach the attention of {type(module).__name__}: it does not use "
            "transformers' attention functions.",
            fix=ELSEWHERE,
        )


@cache
def _access() -> AttentionAccess:
    return AttentionAccess.named("transformers")()


def install(model: nn.Module) -> str:
    """Let the model's attention go through ours. In place.

    Returns: the name of the attention that it had, for `uninstall`.
    Raises: TargetError if the model's attention cannot be reached.
    """
    before = _name_of(model)
    if not before.startswith(PREFIX) and not _access().select(model, registered(before)):
        raise AttentionAccess.unreachable(model)
    return before


def uninstall(model: nn.Module, before: str) -> None:
    """Give the model back the attention that it had. In place."""
    _access().select(model, before)


@contextmanager
def instrumented(module: nn.Module) -> Iterator[None]:
    """Inside the block, calls of a decoder or an attention layer go through ours: no gradients,
    no dropout. Attention and modes come back.

    Raises: TargetError for whatever the module raises: it is not made for such calls.
    """
    config: Any = module.config if _name_of(module) else None
    before = config._attn_implementation
    if not before.startswith(PREFIX):
        config._attn_implementation = registered(before)
    try:
        with in_mode(module, training=False), torch.no_grad():
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


@cache
def registered(before: str) -> str:
    """Register the attention function named `before` with adapters. Returns: its name there."""
    wrap = lambda base: with_adapters(base, fronts=before in CAN_FRONT)  # noqa: E731
    _access().register(PREFIX + before, before, wrap)
    return PREFIX + before


def _name_of(module: nn.Module) -> str:
    name = _access().name_of(module)
    if name is None:
        raise AttentionAccess.unreachable(module)
    return name


def with_adapters(base: Attention, *, fronts: bool = True) -> Attention:
    """`base`, an attention function of the registry, with adapters.

    fronts: `base` takes the masks that `widened_mask` makes, or a keyword `front`.
    """

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        keys_values, front, projected = (
            options.pop(k, None) for k in (KEYS_VALUES, FRONT, PROJECTED)
        )
        if projected is not None:
            projected += [query, key, value]
            return value.new_zeros(*query.shape[:3], value.shape[-1]).transpose(1, 2), None
        if keys_values is not None:
            keys_values[module.layer_idx] = key, value
        inputs = query, key, value
        if front is not None and not fronts:
            raise TargetError(
                "this attention function takes no keys and values in front of the rows.",
                attention=_name_of(module).removeprefix(PREFIX),
                fix='set_attn_implementation("sdpa") on the model first',
            )
        if front is None:
            mixed, weights = base(module, *inputs, mask, **options)  # (B, T, H, D)
        elif "row_lengths" in options:  # the rows' attention puts them before each row
            keys, values = (t.to(key.dtype) for t in front[module.layer_idx])  # type: ignore[index]
            mixed, weights = base(module, *inputs, mask, front=(keys, values), **options)
        else:
            own = front[module.layer_idx]  # type: ignore[index]
            mixed, weights = _behind_front(base, module, inputs, mask, options, *own)
        if isinstance(adapters := module._modules.get(ADAPTERS), LayerAdapters):
            scale = options.get("scaling") or query.shape[-1] ** -0.5
            heads = adapters.adapt_attention(query, mixed.transpose(1, 2), scale)
            mixed = heads.transpose(1, 2)
        return mixed, weights

    return attention


def _behind_front(
    base: Attention,
    module: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    options: dict[str, Any],
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """`base` over the tokens and what is in front of them.

    rows: those that have a front, (b,), each with its own; the others are computed without any, so
    that they have the bits that they have alone. None: all rows have the same.
    """
    query, key, value = inputs
    if rows is None:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        mask = widened_mask(mask, query, key, keys.shape[-2], bool(causal), seen)
        return base(module, query, prepended(key, keys), prepended(value, values), mask, **options)
    own = query[rows], key[rows], value[rows]
    own_mask = mask[rows] if mask is not None and len(mask) > 1 else mask
    behind, weights = _behind_front(base, module, own, own_mask, options, keys, values, seen)
    if len(rows) == len(query):
        mixed = torch.empty_like(behind)
    else:
        mixed, weights = base(module, query, key, value, mask, **options)
    return mixed.index_copy(0, rows, behind), weights


def prepended(own: Tensor, front: Tensor) -> Tensor:
    """(K, N, D) before each row of (B, K, S, D); or (B, K, N, D), each before its row."""
    return torch.cat([front.to(own.dtype).expand(len(own), *front.shape[-3:]), own], dim=2)


def widened_mask(
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


def project_qkv(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Query, keys and values, (1, H or K, N, D), that an attention layer computes from x (N, C).

    Without rotation, and without any mixing. Call it where the layer's attention is ours.
    Raises: TargetError if the layer does not show them.
    """
    names = inspect.signature(layer.forward).parameters
    projected: list[Tensor] = []
    unrotated = x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)  # cos and sin of no angle
    options = {"position_embeddings": unrotated, "attention_mask": None}
    layer.forward(
        x.unsqueeze(0), **{k: v for k, v in options.items() if k in names}, **{PROJECTED: projected}
    )
    if len(projected) != 3:
        raise AttentionAccess.unreachable(layer)
    return projected


@contextmanager
def acting_alone(module: nn.Module, adapter: nn.Module) -> Iterator[None]:
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


def arguments_by_name(decoder: nn.Module, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments, all by name."""
    names = [p for p in inspect.signature(decoder.forward).parameters if p != "self"]
    return {**dict(zip(names, args, strict=False)), **options}
