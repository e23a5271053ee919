"""Text in fixed batches, through transformers' own `generate`: for what slots cannot carry.

A batch runs until the longest of its texts ends. It never changes what a row writes: see
generation.batches.
"""

from dataclasses import replace
from typing import Any

import torch

from lorica.base.load import LoadedModel
from lorica.core.condition import with_conditions
from lorica.generation.batches import batches, batching_for, batching_notices, pad_left
from lorica.generation.sampling import Sampling, check_logits, generation_settings
from lorica.generation.stops import Stops
from lorica.generation.task import OnText, Task


def generate_static(loaded: LoadedModel, task: Task) -> tuple[list[list[int]], list[str]]:
    """(the new tokens of each prompt up to its stop, notices)."""
    prompts, room, conditions = task.prompts, list(task.room), task.conditions
    size, batching = batching_for(loaded, prompts, task.slots)
    tokens: list[list[int]] = [[] for _ in prompts]
    device = next(loaded.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(task.sampling.seed)
        for picked in batches(prompts, room, size, batching):
            batch = [prompts[i] for i in picked]
            limited = replace(task.sampling, max_new_tokens=room[picked[0]])
            with with_conditions(loaded.model, conditions and [conditions[i] for i in picked]):
                new = _generate_batch(loaded, batch, limited, task)
            for i, row in zip(picked, new, strict=True):
                tokens[i] = row
            task.on_rows(len(picked))
    return tokens, batching_notices(size, batching, prompts, room)


def _generate_batch(
    loaded: LoadedModel, prompts: list[list[int]], sampling: Sampling, task: Task
) -> list[list[int]]:
    """New token ids of each prompt, up to its stop."""
    model: Any = loaded.model
    stops, pad_id = task.stops, loaded.tokenizer.pad_token_id
    if pad_id is None:
        pad_id = stops.tokens[0] if stops.tokens else 0
    ids, mask = pad_left(prompts, pad_id)
    width, device = ids.shape[1], next(model.parameters()).device
    with generation_settings(model, sampling, stop_tokens=stops.tokens, pad_id=pad_id):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            streamer=task.on_text and _Streamer(stops, prompts[0], task.on_text),
            logits_processor=[check_logits],
            stopping_criteria=stops.criteria(width),
        )
    return [stops.cut(row) for row in out[:, width:].tolist()]


class _Streamer:
    """transformers' streamer: gives `on_text` the text that no later token can change."""

    def __init__(self, stops: Stops, prompt: list[int], on_text: OnText):
        self.stops, self.on_text = stops, on_text
        self.stream = stops.stream(prompt)
        self.has_prompt = False

    def put(self, value: Any) -> None:
        if not self.has_prompt:  # the first call brings the prompt
            self.has_prompt = True
            return
        for token in value.reshape(-1).tolist():
            if token not in self.stops.tokens:
                self.stream.push(token)
        self._send()

    def end(self) -> None:
        self.stream.end()
        self._send()

    def _send(self) -> None:
        if text := self.stream.take():
            self.on_text(text)
