"""Text of many prompts through the decoder: slots are refilled as texts end.

The longest prompts come first, so that those that are read together are of similar length.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lorica.base.load import LoadedModel
from lorica.core.condition import set_conditions, with_conditions
from lorica.errors import TrainingError
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request, Row
from lorica.generation.sampling import NOT_FINITE_FIX
from lorica.generation.task import OnText, Task

CHUNK = 1024
"""Most tokens of prompts of a pass. Nobody waits for the first token, so it is large."""
PATIENCE = 0.25
"""Slots are refilled when the free ones have been idle for PATIENCE * slots row-passes: a refill
costs a forward pass, and waiting lets it read several prompts."""


def generate_continuous(loaded: LoadedModel, task: Task) -> list[list[int]]:
    """The new tokens of each prompt, up to its stop.

    Raises: TrainingError if the logits of a row are not finite.
    """
    model, count = loaded.model, len(task.prompts)

    def acting(conditions: Sequence[Any]) -> AbstractContextManager[object]:
        if task.conditions is not None:
            set_conditions(model, conditions)
        return nullcontext()

    lengths = [len(ids) + free for ids, free in zip(task.prompts, task.room, strict=True)]
    slots = min(task.slots, count)
    order = sorted(range(count), key=lambda i: -len(task.prompts[i]))
    rows: dict[int, Row] = {}
    with with_conditions(model, None):  # none are set afterwards
        decoder = Decoder(model, slots=slots, max_length=max(lengths), acting=acting, chunk=CHUNK)
        idle = slots
        while len(rows) < count or decoder.rows:
            idle += decoder.free
            if idle >= PATIENCE * slots and decoder.free:
                idle = 0
                picked = order[len(rows) : len(rows) + decoder.free]
                admitted = decoder.admit([_request(task, i) for i in picked])
                rows |= dict(zip(picked, admitted, strict=True))
            stepped = decoder.step()
            _check_finite(task, rows, stepped)
            if task.on_text is not None:
                _give_text(stepped, task.on_text)
            if ended := sum(row.ended is not None for row in stepped):
                task.on_rows(ended)
    return [rows[i].tokens for i in range(count)]


def _request(task: Task, i: int) -> Request:
    return Request(
        prompt=task.prompts[i],
        sampling=task.sampling_of(i),
        stops=task.stops,
        adapter=task.conditions and task.conditions[i],
        has_text=task.on_text is not None,
    )


def _give_text(rows: Sequence[Row], on_text: OnText) -> None:
    for row in rows:
        if row.text is not None and (text := row.text.take()):
            on_text(text)


def _check_finite(task: Task, rows: Mapping[int, Row], stepped: Sequence[Row]) -> None:
    for i in (i for i, row in rows.items() if row.ended == "error" and row in stepped):
        where = f"prompt {task.numbers[i] + 1}: " if len(task.numbers) > 1 else ""
        raise TrainingError(f"{where}{rows[i].error}", fix=NOT_FINITE_FIX)
