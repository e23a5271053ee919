"""Keys and values in front of every row, which the decoder attends to as if tokens preceded it.

They are no part of the row: the decoder gives no output for them, and no key-value cache holds
them.

    K key heads   T tokens   D head size   C features   N positions in front
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorica.core.attention import ELSEWHERE, FRONT, KEYS_VALUES, instrumented
from lorica.core.site import Site, site_of, sites_of
from lorica.errors import TargetError, listed

CACHED = "lorica_fronts"
"""Attribute of a key-value cache: the fronts that were computed for its rows."""
Front = Mapping[int, tuple[Tensor, Tensor]]
"""layer_idx -> (keys, values), each (K, N, D)."""


def prepend_front(
    decoder: nn.Module, options: dict[str, Any], front: Front, *, shift: bool = True
) -> dict[str, Any]:
    """The arguments of a decoder's call, with `front` before every row.

    A front that is there already stays before it.

    shift: the tokens' positions are counted from the first position in front.
    """
    before: Front | None = options.get(FRONT)
    if shift:
        options = shift_positions(decoder, options, front_length(front))
    if before is not None:
        front = {i: _joined(before[i], pair) for i, pair in front.items()}
    return {**options, FRONT: front}


def _joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]], dim=1), torch.cat([a[1], b[1]], dim=1)


def front_length(front: Front) -> int:
    """N, the positions of a front."""
    return next(iter(front.values()))[0].shape[1]


def shift_positions(decoder: nn.Module, options: dict[str, Any], n: int) -> dict[str, Any]:
    """The arguments of a decoder's call, with every token `n` positions later.

    Where the call has no positions, they are counted from the first token that is not padding, so
    that a padded row gives the output that it gives alone.
    """
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return options  # this architecture takes no positions
    positions = options.get("position_ids")
    if positions is None:
        inputs = next(
            options[key] for key in ("input_ids", "inputs_embeds") if options.get(key) is not None
        )
        mask, tokens = options.get("attention_mask"), inputs.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
        else:
            past = options.get("past_key_values")
            start = past.get_seq_length() if past is not None else 0
            positions = (torch.arange(tokens, device=inputs.device) + start).unsqueeze(0)
    return {**options, "position_ids": positions + n}


def keys_values_of(decoder: nn.Module, vectors: Tensor, like: Mapping[str, Any]) -> Front:
    """The keys and values that each attention layer computes from vectors (N, C), which are given
    in place of token embeddings.

    They come after what is in front already. like: the keyword arguments of the call that this
    one precedes.
    """
    computed: dict[int, tuple[Tensor, Tensor]] = {}
    inputs = vectors.to(decoder.dtype).unsqueeze(0)  # type: ignore[arg-type]
    options: dict[str, Any] = {"inputs_embeds": inputs, "use_cache": False, KEYS_VALUES: computed}
    if "row_lengths" in like:
        options["row_lengths"] = [len(vectors)]
    if before := like.get(FRONT):
        options = {**shift_positions(decoder, options, front_length(before)), FRONT: before}
    decoder.forward(**options)
    return {i: (key.squeeze(0), value.squeeze(0)) for i, (key, value) in computed.items()}


def cached(options: Mapping[str, Any], adapter: nn.Module, compute: Callable[[], Front]) -> Front:
    """`compute()`, once for a whole generation: the result is kept in the rows' key-value cache,
    for as long as `adapter` lives.

    It is computed again wherever gradients are on, or the cache is empty and may serve another
    text.
    """
    past = options.get("past_key_values")
    if past is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute()
    fronts = vars(past).setdefault(CACHED, WeakKeyDictionary())
    if adapter not in fronts or not past.get_seq_length():
        fronts[adapter] = compute()
    return fronts[adapter]


def layers(decoder: nn.Module) -> list[nn.Module]:
    """The attention layers of a decoder, each with its own layer_idx.

    Raises: TargetError if there are none, or several share a layer (an encoder beside a decoder).
    """
    sites = sites_of(decoder, ("attention",))
    numbers: list[Any] = [site.module.layer_idx for site in sites]
    if not sites or None in numbers or len(set(numbers)) < len(numbers):
        raise TargetError(
            f"{type(decoder).__name__} has no single row of attention layers.",
            attention=listed(f"{s.name} (layer {i})" for s, i in zip(sites, numbers, strict=True)),
            fix=ELSEWHERE,
        )
    return [site.module for site in sites]


def is_causal(decoder: nn.Module) -> bool:
    """Every attention layer sees only what precedes a token."""
    return all(layer.is_causal for layer in layers(decoder))


def probe_keys_values(decoder: nn.Module, vectors: Tensor) -> Front:
    """`keys_values_of`, for a base that is not adapted yet.

    Raises: TargetError if a layer of the decoder does not call the attention function.
    """
    numbers: set[Any] = {layer.layer_idx for layer in layers(decoder)}
    with instrumented(decoder):
        computed = keys_values_of(decoder, vectors, {})
    if computed.keys() != numbers:
        raise TargetError(
            f"{type(decoder).__name__} has attention that adapters cannot reach.",
            layers=listed(sorted(numbers ^ computed.keys())),
            fix=ELSEWHERE,
        )
    return computed


def check_prepending(decoder: nn.Module) -> None:
    """Try whether keys and values in front of a row act as if their tokens were prepended.

    Raises: TargetError if not: where virtual tokens see the text, or layers other than attention
        carry something from token to token.
    """
    config: Any = decoder.config
    if not is_causal(decoder):
        raise TargetError(
            f"{type(decoder).__name__} reads a row in both directions: what virtual tokens become "
            "depends on the text, and cannot stand before every row.",
            fix="use prefix_tuning, or lora",
        )
    table = embedding_of(decoder)
    tokens = embedded(table, (torch.arange(3) * 7 + 3) % table.in_features)
    ahead, row = tokens[:1], tokens[1:].to(decoder.dtype).unsqueeze(0)  # type: ignore[arg-type]
    front = probe_keys_values(decoder, ahead)
    plain = {"inputs_embeds": row, "use_cache": False}
    with instrumented(decoder):
        joined = torch.cat([ahead.to(row).unsqueeze(0), row], dim=1)
        prepended = decoder.forward(inputs_embeds=joined, use_cache=False)[0][:, 1:].float()
        alone = decoder.forward(**plain)[0].float()
        got = decoder.forward(**prepend_front(decoder, plain, front))[0].float()
    moved, off = (prepended - alone).norm(), (got - prepended).norm()
    rounding = 1e-5 * alone.norm() + (0.02 if row.dtype == torch.float32 else 0.3) * moved
    if off > rounding or len(front) < config.num_hidden_layers:
        raise TargetError(
            f"{type(decoder).__name__} carries more from token to token than its attention does: "
            "what stands in front of a row does not act as if it were prepended.",
            difference=f"{off:.2g}, where a virtual token changes {moved:.2g}",
            attention=f"in {len(front)} of {config.num_hidden_layers} layers",
            fix=ELSEWHERE,
        )


def embedding_of(decoder: nn.Module) -> Site:
    """The embedding of tokens. Raises: TargetError if the decoder does not say which it is."""
    foreign: Any = decoder
    table = foreign.get_input_embeddings()
    site = site_of("embeddings", table) if isinstance(table, nn.Module) else None
    if site is None or site.kind != "embedding":
        raise TargetError(f"{type(decoder).__name__} has no embedding of tokens.", fix=ELSEWHERE)
    return site


@torch.no_grad()
def embedded(table: Site, ids: Tensor) -> Tensor:
    """What the decoder reads in place of the tokens `ids` (N,): (N, C) float32."""
    return table.module.forward(ids.to(table.like.device)).float()
