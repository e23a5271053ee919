"""Prompts that share a left-padded batch: which may, and how they are batched.

Left padding changes what some architectures write (recurrent ones, whose state runs over it), and
so does a batch of several lengths (LongRoPE). Their batches have prompts of one length. Whether a
model is one of them is tried, not looked up: see base.batching.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.batching import Batching, alone, batching_of, pad_id
from lorica.base.context_length import check_tokens, embedding_rows
from lorica.base.load import LoadedModel
from lorica.data.example import Example
from lorica.errors import DataError, listed
from lorica.generation.sampling import Sampling, generation_settings


def batching_for(
    loaded: LoadedModel, prompts: Sequence[list[int]], batch_size: int
) -> tuple[int, Batching]:
    """(most prompts of a batch, which lengths may share one); tried only where it matters.

    Few models cannot even batch prompts of one length: transformers' RWKV mixes states of rows.
    """
    lengths = {len(ids) for ids in prompts}
    if batch_size == 1 or len(prompts) == 1:
        return 1, Batching()
    mixed = Batching()
    if len(lengths) > 1:
        mixed = batching_of(loaded.model, "left-padded", _left_padded, _last_two)
        if mixed.refused is None and mixed.shared is None:
            return batch_size, mixed
    equal = batching_of(loaded.model, "batched", _left_padded, _last_two, (6, 6))
    return (batch_size, mixed) if equal.refused is None else (1, equal)


def batching_notices(
    batch_size: int, batching: Batching, prompts: Sequence[list[int]], room: list[int]
) -> list[str]:
    """A notice if prompts cannot share a batch, or only with prompts of the same length."""
    equal = "a batch has prompts of one length"
    if batching.refused is not None:
        how = equal if batch_size > 1 else "prompts are continued one at a time"
        return [f"{how}: {batching.refused}"]
    ends = [len(ids) + free for ids, free in zip(prompts, room, strict=True)]
    limit = batching.shared
    if limit is not None and any(end > limit for end in ends):
        return [f"{equal} where texts pass {limit} tokens ({batching.causes['shared']})"]
    return []


def room_for_answers(
    loaded: LoadedModel, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[int]:
    """How many tokens each answer may have in the context of the model.

    Raises: DataError for a prompt that is empty or too long.
    """
    empty = [i + 1 for i, ids in enumerate(prompts) if not ids]
    if empty:
        raise DataError(f"prompt {listed(empty)} is empty.", fix="give at least one word")
    rows = [Example(ids, [], f"prompt {i + 1}") for i, ids in enumerate(prompts)]
    check_tokens(rows, loaded.tokenizer, embedding_rows(loaded.model))
    limit = loaded.max_length
    if limit is None:
        return [max_new_tokens] * len(prompts)
    room = [min(max_new_tokens, limit - len(ids)) for ids in prompts]
    too_long = [i for i, free in enumerate(room) if free < 1]
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(prompts)} prompts leave no room for an answer: "
            f"the base's context is {limit} tokens.",
            prompts=listed(f"number {i + 1}: {len(prompts[i])} tokens" for i in too_long),
            fix="shorten them",
        )
    return room


def batches(
    prompts: Sequence[list[int]], room: list[int], batch_size: int, batching: Batching
) -> Iterator[list[int]]:
    """Row numbers of each batch, longest prompts first; rows of a batch have the same room."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        full = len(batch) == batch_size
        if batch and (full or not _may_share(prompts, room, batch[0], i, batching)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), (B, T) each; the mask is 1 at tokens of the prompt."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _may_share(
    prompts: Sequence[list[int]], room: list[int], first: int, other: int, batching: Batching
) -> bool:
    """Whether prompt `other` may join the batch of `first`, which is no shorter."""
    if room[first] != room[other]:
        return False
    if len(prompts[first]) == len(prompts[other]):
        return True
    end = len(prompts[first]) + room[first]
    return batching.refused is None and (batching.shared is None or end <= batching.shared)


def _last_two(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    return [logits[-2:] for logits in alone(model, rows)]


@torch.no_grad()
def _left_padded(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The last two logits (2, V) of each row, computed as in generation: padded, from the cache."""
    foreign: Any = model
    filler, device = pad_id(model), rows[0].device
    ids, mask = pad_left([row[:-1].tolist() for row in rows], filler)
    last = torch.stack([row[-1] for row in rows])

    def force_last(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -1e4).scatter(1, last.to(scores.device).unsqueeze(1), 0.0)

    with generation_settings(model, Sampling(max_new_tokens=2), stop_tokens=(), pad_id=filler):
        out = foreign.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=[force_last],
            return_dict_in_generate=True,
            output_logits=True,
        )
    return list(torch.stack(out.logits, dim=1))
