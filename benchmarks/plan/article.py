"""The case of Lightning AI's article of 2023 on LoRA in Lit-LLaMA, planned: what it measured on an
A100, what `lorica plan` says of the same recipe, and what it says of the library's way to run it.

The recipe: LLaMA-7B, rank 8 on queries and values, rows of Alpaca of at most 256 tokens,
micro-batches of 4 rows, bfloat16, 62,400 iterations, each of one micro-batch.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from lorica.plan.devices import Device, device_named
from lorica.plan.memory import Memory, peak_memory
from lorica.plan.shapes import Shapes, read_shapes
from lorica.plan.time import Span, step_time
from lorica.plan.tokens import MicroBatch, TokenCounts
from lorica.recipe.catalogue import method as catalogued
from lorica.training.settings import TrainSettings

ITERATIONS, MICRO, LONGEST = 62_400, 4, 256
DRAWN = 4_000
"""Micro-batches, by whose lengths the case is planned."""
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Side:
    """A method of the article. gigabytes, minutes: what it states; None: it does not."""

    name: str
    method: dict[str, Any]
    settings: dict[str, Any]
    gigabytes: float | None
    minutes: float | None


SIDES = (
    Side("LoRA", {"name": "lora", "r": 8}, {"target_modules": ["q_proj", "v_proj"]}, 21, 192),
    Side("LLaMA-Adapter", {"name": "llama_adapter"}, {}, 22, 162),
    Side("full fine-tuning", {"name": "full"}, {}, None, 6_000),
)
"""Full fine-tuning took 1,956 minutes on four GPUs of at least 22 GB each: "at least 6,000" on one.
"""


@dataclass(frozen=True)
class Planned:
    """What is planned for a side. as_there: rows padded, and all positions learned."""

    side: Side
    memory: Memory
    memory_as_there: Memory
    run: Span
    run_as_there: Span


def planned(device: Device | None = None) -> list[Planned]:
    """The sides, planned for the A100 of the article."""
    device = device or device_named("a100-40")
    shapes, ours, there = llama_7b(), counts(padded=False), counts(padded=True)
    results = []
    for side in SIDES:
        settings = settings_of(side)
        spans = [step_time(shapes, settings.method, settings, t, device) for t in (ours, there)]
        run, run_as_there = (span * ITERATIONS for span in spans if span is not None)
        memory, memory_as_there = (
            peak_memory(shapes, settings.method, settings, t, device) for t in (ours, there)
        )
        results.append(Planned(side, memory, memory_as_there, run, run_as_there))
    return results


def settings_of(side: Side) -> TrainSettings:
    defaults = {option.name: option.value for option in catalogued(side.method["name"]).options}
    return TrainSettings(
        data={"path": "alpaca.jsonl"},  # type: ignore[arg-type]
        method={**defaults, **side.method},
        micro_batch_size=MICRO,
        dtype="bfloat16",
        **side.settings,
    )


def llama_7b() -> Shapes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_7B))
        return read_shapes(folder)


def counts(*, padded: bool) -> TokenCounts:
    """The tokens of rows as long as Alpaca's. padded: to the longest row of a micro-batch, and all
    positions are learned; otherwise packed, with shared prefixes, and only answers are learned."""
    rows = work.rows(MICRO * DRAWN, longest=LONGEST)
    groups = [rows[i : i + MICRO] for i in range(0, len(rows), MICRO)]
    batches = [micro_batch(group, padded=padded) for group in groups]
    fields = zip(*map(_fields, batches), strict=True)
    mean = MicroBatch(*(statistics.fmean(values) for values in fields))
    return TokenCounts(
        rows=len(rows),
        real_tokens=work.tokens(rows),
        label_tokens=sum(len(row.ids) - row.answer for row in rows),
        computed_tokens=round(sum(batch.tokens for batch in batches)),
        longest=LONGEST,
        largest=max(batches, key=lambda batch: (batch.tokens, batch.labels)),
        mean=mean,
    )


def micro_batch(rows: list[work.Row], *, padded: bool) -> MicroBatch:
    lengths = [len(row.ids) for row in rows]
    if padded:
        size = len(rows) * max(lengths)
        return MicroBatch(len(rows), size, size, max(lengths), size)
    ordered = sorted(row.ids for row in rows)
    shared = sum(map(_shared, ordered, ordered[1:]))
    labels = sum(len(row.ids) - row.answer for row in rows)
    return MicroBatch(len(rows), sum(lengths) - shared, labels, max(lengths), sum(lengths))


def _shared(a: list[int], b: list[int]) -> int:
    """Tokens with which two rows begin."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _fields(batch: MicroBatch) -> tuple[float, ...]:
    return batch.rows, batch.tokens, batch.labels, batch.longest, batch.attended
