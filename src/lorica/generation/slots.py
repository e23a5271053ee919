"""Which models the slots can carry: tried, not looked up, as in base.batching.

Two rows of different lengths are read in chunks, beside one another, one is moved to another slot,
and both go on from there. Their logits must be those of each row alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lorica.base.batching import Batching, alone, batching_of
from lorica.generation.forward import PADDING, MaskKind, SlotForward


@dataclass(frozen=True)
class SlotSupport:
    """How a model decodes in slots.

    batching.refused: why it cannot; batching.shared: longer rows must be continued elsewhere.
    """

    batching: Batching
    masks: MaskKind = "positions"


def slot_support(model: nn.Module) -> SlotSupport:
    """How `model` decodes in slots; tried once for each model."""
    refused = Batching()
    for masks in ("positions", "columns"):
        way = f"slots by {masks}"
        batching = batching_of(model, way, partial(_through_slots, masks), _last_two)
        if batching.refused is None:
            return SlotSupport(batching, masks)
        refused = refused if refused.refused else batching
    return SlotSupport(refused)


def padded_left(rows: list[list[int]], filler: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [[filler] * (width - len(row)) + row for row in rows]


def _last_two(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    return [logits[-2:] for logits in alone(model, rows)]


@torch.no_grad()
def _through_slots(masks: MaskKind, model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The last two logits (2, V) of each row: of the end of its prompt, and of one token more."""
    count, longest = len(rows), max(map(len, rows))
    forward = SlotForward(model, count + 1, longest, masks)
    run = _runner(forward)
    prompts = [row[:-1].tolist() for row in rows]
    cut = len(prompts[0]) // 2  # its first row is read in two chunks
    if cut:
        run(1, [prompts[0][:cut]], [0])
    starts = [cut] + [0] * (count - 1)
    rests = [prompt[start:] for prompt, start in zip(prompts, starts, strict=True)]
    if masks == "positions":
        first = run(1, rests, starts)
    else:
        first = torch.cat([run(1 + i, [rests[i]], [starts[i]]) for i in range(count)])
    forward.cache.move(count, 0, len(prompts[-1]))
    lasts = [[int(row[-1])] for row in rows]
    second = run(0, [lasts[-1], *lasts[:-1]], [len(prompts[-1]), *map(len, prompts[:-1])])
    second = second.roll(-1, 0)  # the last row was moved to the front
    return list(torch.stack([first, second], dim=1))


def _runner(forward: SlotForward) -> Callable[[int, list[list[int]], list[int]], Tensor]:
    def run(first: int, rows: list[list[int]], starts: list[int]) -> Tensor:
        positions = [
            list(range(start, start + len(row))) for row, start in zip(rows, starts, strict=True)
        ]
        both = torch.tensor([padded_left(rows, 0), padded_left(positions, PADDING)])
        ids, places = both.to(forward.device)
        return forward.last_logits(first, ids, places, int(places.max()) + 1)

    return run
