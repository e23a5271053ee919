"""Prompts that share a left-padded batch: which ones may, and how they are generated from.

Where padding on the left changes what a row gives (recurrent bases, whose state runs over it) or
lengths do (LongRoPE), a batch has prompts of one length. Whether it is so is tried: see
base.batching.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.batching import Batching, alone, batching_of, pad_id
from lorica.base.context_length import check_tokens, embedding_rows
from lorica.base.load import LoadedModel
from lorica.data.tokenise import Example
from lorica.errors import ConfigError, DataError, listed


def batching_for(
    base: LoadedModel, prompts: Sequence[list[int]], size: int
) -> tuple[int, Batching]:
    """How many prompts may share a batch, and of which lengths; tried only where it is asked for.

    Few bases cannot batch prompts of one length: transformers' RWKV mixes the states of its rows.
    """
    lengths = [len(ids) for ids in prompts]
    if size == 1 or len(lengths) == 1:
        return 1, Batching()
    if len(set(lengths)) > 1:
        mixed = batching_of(base.model, "left-padded", _left_padded, _last_two)
    else:
        mixed = Batching()
    if mixed.refused is None and len(set(lengths)) > 1 and mixed.shared is None:
        return size, mixed
    even = batching_of(base.model, "batched", _left_padded, _last_two, (6, 6))
    return (size, mixed) if even.refused is None else (1, even)


def left_notices(
    size: int, batching: Batching, prompts: Sequence[list[int]], room: list[int]
) -> list[str]:
    """Named lines on prompts that share no batch, or one with prompts of their own length only."""
    apart = "a batch has prompts of one length"
    if batching.refused is not None:
        return [f"{apart if size > 1 else 'prompts are continued one by one'}: {batching.refused}"]
    ends = [len(ids) + free for ids, free in zip(prompts, room, strict=True)]
    limit = batching.shared
    if limit is not None and any(end > limit for end in ends):
        return [f"{apart} where texts pass {limit} tokens ({batching.causes['shared']})"]
    return []


def room_of(base: LoadedModel, prompts: Sequence[list[int]], most: int) -> list[int]:
    """How many tokens each row may get. Raises: ConfigError, DataError if one may get none."""
    if base.labels is not None:
        raise ConfigError(
            "this base is a classifier: it writes no text.", fix="measure it with lorica eval"
        )
    limit = base.max_length
    empty = [i + 1 for i, ids in enumerate(prompts) if not ids]
    if empty:
        raise DataError(f"prompt {listed(empty)} is empty.", fix="give at least one word")
    rows = [Example(ids, [], f"prompt {i + 1}") for i, ids in enumerate(prompts)]
    check_tokens(rows, base.tokenizer, embedding_rows(base.model))
    if limit is None:
        return [most] * len(prompts)
    room = [min(most, limit - len(ids)) for ids in prompts]
    long = [i for i, free in enumerate(room) if free < 1]
    if long:
        raise DataError(
            f"{len(long)} of {len(prompts)} prompts leave no room for an answer: "
            f"the base's context is {limit} tokens.",
            prompts=listed(f"number {i + 1}: {len(prompts[i])} tokens" for i in long),
            fix="shorten them",
        )
    return room


def batches(
    prompts: Sequence[list[int]], room: list[int], size: int, batching: Batching
) -> Iterator[list[int]]:
    """Row numbers, longest first; a batch has one room, which for cut rows is one length."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == size or not _alike(prompts, room, batch[0], i, batching)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _alike(
    prompts: Sequence[list[int]], room: list[int], first: int, other: int, batching: Batching
) -> bool:
    """Prompt `other` may share the batch of `first`, which is no shorter."""
    if room[first] != room[other]:
        return False
    if len(prompts[first]) == len(prompts[other]):
        return True
    end = len(prompts[first]) + room[first]
    return batching.refused is None and (batching.shared is None or end <= batching.shared)


def pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), (B, T) each; mask is 1 where a token is of the prompt."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@contextmanager
def generating(
    model: Any, room: int, stops: list[int], filler: int, **choice: Any
) -> Iterator[None]:
    """Inside the block the model generates by these settings alone, not by its author's."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=room,
        eos_token_id=stops or None,
        pad_token_id=filler,
        use_cache=True,
        **{"do_sample": False, **choice},
    )
    try:
        yield
    finally:
        model.generation_config = own


def _last_two(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    return [logits[-2:] for logits in alone(model, rows)]


@torch.no_grad()
def _left_padded(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The logits (2, V) after each row but its last token, and after its last: from the cache."""
    foreign: Any = model
    filler, device = pad_id(model), rows[0].device
    ids, mask = pad_left([row[:-1].tolist() for row in rows], filler)
    last = torch.stack([row[-1] for row in rows])

    def force(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -1e4).scatter(1, last.to(scores.device).unsqueeze(1), 0.0)

    with generating(model, 2, [], filler):
        out = foreign.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=[force],
            return_dict_in_generate=True,
            output_logits=True,
        )
    return list(torch.stack(out.logits, dim=1))
