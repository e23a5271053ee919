"""Vectors and keys that stand in front of every row, without being tokens of it.

A decoder that is given `in_front(...)` attends to them as to tokens before the first. They are
no part of the row: nothing comes out where they stand, and no cache holds them.

    K key heads   T tokens   D head size   C features   N positions in front
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.attention import ELSEWHERE, FRONT, HEARD, listening
from lorica.core.site import Site, site_of, sites_of
from lorica.errors import TargetError, listed

KEPT = "lorica_kept"
Front = Mapping[int, tuple[Tensor, Tensor]]
"""layer_idx -> (keys, values), each (K, N, D)."""


def in_front(
    decoder: nn.Module, options: dict[str, Any], front: Front, *, shift: bool = True
) -> dict[str, Any]:
    """The decoder's call with `front` before every row, and after what stands there already.

    shift: the tokens' positions are counted from the first position in front.
    """
    there: Front | None = options.get(FRONT)
    if shift:
        options = shifted(decoder, options, length(front))
    if there is not None:
        front = {i: _joined(there[i], pair) for i, pair in front.items()}
    return {**options, FRONT: front}


def _joined(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([one[0], two[0]], dim=1), torch.cat([one[1], two[1]], dim=1)


def length(front: Front) -> int:
    """N."""
    return next(iter(front.values()))[0].shape[1]


def shifted(decoder: nn.Module, options: dict[str, Any], n: int) -> dict[str, Any]:
    """The decoder's call with every token `n` positions later than it would stand.

    Where the call has no positions they are counted from the first token that is no padding, so
    that a padded row gives what the row gives alone.
    """
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return options  # it knows no positions
    places = options.get("position_ids")
    if places is None:
        inputs = next(
            options[key] for key in ("input_ids", "inputs_embeds") if options.get(key) is not None
        )
        mask, tokens = options.get("attention_mask"), inputs.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            places = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
        else:
            past = options.get("past_key_values")
            start = past.get_seq_length() if past is not None else 0
            places = (torch.arange(tokens, device=inputs.device) + start).unsqueeze(0)
    return {**options, "position_ids": places + n}


def heard(decoder: nn.Module, vectors: Tensor, like: Mapping[str, Any]) -> Front:
    """What each attention layer makes of vectors (N, C) in place of token embeddings.

    They stand behind what is in front already. like: the keyword arguments of the call that
    this one precedes.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    inputs = vectors.to(decoder.dtype).unsqueeze(0)  # type: ignore[arg-type]
    options: dict[str, Any] = {"inputs_embeds": inputs, "use_cache": False, HEARD: found}
    if "row_lengths" in like:
        options["row_lengths"] = [len(vectors)]
    if there := like.get(FRONT):
        options = {**shifted(decoder, options, length(there)), FRONT: there}
    decoder.forward(**options)
    return {i: (key.squeeze(0), value.squeeze(0)) for i, (key, value) in found.items()}


def kept(options: Mapping[str, Any], key: object, make: Callable[[], Front]) -> Front:
    """`make()`, once for a whole generation: it is kept with the key-value cache of the rows.

    Anew wherever gradients are wanted, or the cache is empty and may serve another text.
    """
    past = options.get("past_key_values")
    if past is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return make()
    shelf = vars(past).setdefault(KEPT, {})
    if key not in shelf or not past.get_seq_length():
        shelf[key] = make()
    return shelf[key]


def layers(decoder: nn.Module) -> list[nn.Module]:
    """The attention layers of a decoder, each with its own layer_idx.

    Raises: TargetError if there are none, or several share a layer (an encoder beside a decoder).
    """
    found = sites_of(decoder, ("attention",))
    places: list[Any] = [site.module.layer_idx for site in found]
    if not found or None in places or len(set(places)) < len(places):
        raise TargetError(
            f"{type(decoder).__name__} has no single row of attention layers.",
            attention=listed(f"{s.name} (layer {i})" for s, i in zip(found, places, strict=True)),
            fix=ELSEWHERE,
        )
    return [site.module for site in found]


def reads_left_to_right(decoder: nn.Module) -> bool:
    return all(layer.is_causal for layer in layers(decoder))


def shown(decoder: nn.Module, vectors: Tensor) -> Front:
    """`heard`, of a base that is not adapted yet.

    Raises: TargetError if the decoder does not show what each of its attention layers does.
    """
    wanted: set[Any] = {layer.layer_idx for layer in layers(decoder)}
    with listening(decoder):
        found = heard(decoder, vectors, {})
    if found.keys() != wanted:
        raise TargetError(
            f"{type(decoder).__name__} has attention that adapters cannot reach.",
            layers=listed(sorted(wanted ^ found.keys())),
            fix=ELSEWHERE,
        )
    return found


def check_prepending(decoder: nn.Module) -> None:
    """What stands in front must act as if it were prepended. It is tried, not only looked up.

    Raises: TargetError if it does not: where virtual tokens see the text, or layers that are no
        attention carry something from token to token.
    """
    config: Any = decoder.config
    if not reads_left_to_right(decoder):
        raise TargetError(
            f"{type(decoder).__name__} reads a row in both directions: what virtual tokens become "
            "depends on the text, and cannot stand before every row.",
            fix="use prefix_tuning, or lora",
        )
    table = embedding_of(decoder)
    tokens = embedded(table, (torch.arange(3) * 7 + 3) % table.in_features)
    ahead, row = tokens[:1], tokens[1:].to(decoder.dtype).unsqueeze(0)  # type: ignore[arg-type]
    front = shown(decoder, ahead)
    plain = {"inputs_embeds": row, "use_cache": False}
    with listening(decoder):
        joined = torch.cat([ahead.to(row).unsqueeze(0), row], dim=1)
        prepended = decoder.forward(inputs_embeds=joined, use_cache=False)[0][:, 1:].float()
        alone = decoder.forward(**plain)[0].float()
        got = decoder.forward(**in_front(decoder, plain, front))[0].float()
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
