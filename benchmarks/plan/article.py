"""The article's own case, planned: LLaMA-7B on Alpaca with an A100, beside what it measured.

    python -m benchmarks.plan.article            print the table
    python -m benchmarks.plan.article --write    put it into docs/guides/planning.md

Lightning AI's article of 2023 on Lit-LLaMA: rank 8 on queries and values, micro-batches of 4, 32 of
them a step, bfloat16, 62,400 micro-batches. Rows are as long as Alpaca's (benchmarks.speed.work)
and at most 256 tokens, as the article says. It is planned twice: for what Lorica computes, and for
what the article's program did: rows padded to the longest of their micro-batch, and logits and the
last block at every position.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.work import Row, rows
from lorica.data.example import Example
from lorica.plan.devices import device_named
from lorica.plan.memory import Memory, peak_memory
from lorica.plan.shapes import Shapes, read_shapes
from lorica.plan.time import Span, step_time
from lorica.plan.tokens import MicroBatch, TokenCounts, micro_batch
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import TrainConfig, read

PAGE = Path(__file__).parents[2] / "docs/guides/planning.md"
BEGIN, END = "<!-- python -m benchmarks.plan.article -->\n", "<!-- end -->"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
MICRO_BATCHES, PER_STEP, ROWS, LONGEST = 62_400, 32, 2_000, 256
GB = 10**9


@dataclass(frozen=True)
class Case:
    """A row of the article's table. memory, minutes: what it states; in words where it is more."""

    name: str
    method: dict[str, Any]
    memory: str
    minutes: str


CASES = (
    Case("LoRA", {"name": "lora", "r": 8}, "21 GB", "192 min"),
    Case("LLaMA-Adapter", {"name": "llama_adapter"}, "22 GB", "162 min"),
    Case("full fine-tuning", {"name": "full"}, "2 x 30 GB or 4 x 22 GB", "1,956 min on 4 cards"),
)


def table() -> str:
    """The table of the page."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        shapes = read_shapes(folder)
        return "\n".join([*_lines(shapes, folder), ""])


def _lines(shapes: Shapes, base: str) -> Iterator[str]:
    yield "| | the article measured | planned, its way | planned for Lorica |"
    yield "|---|---|---|---|"
    for case in CASES:
        config = _settings(case, base)
        padded, packed = (_planned(shapes, config, its_way=way) for way in (True, False))
        yield f"| {case.name}, memory | {case.memory} | {_gb(padded[0])} | {_gb(packed[0])} |"
        times = f"{_minutes(padded[1])} | {_minutes(packed[1])}"
        yield f"| {case.name}, time | {case.minutes} | {times} |"


def _settings(case: Case, base: str) -> TrainConfig:
    given: dict[str, Any] = {
        "base": base,
        "data": "alpaca.jsonl",
        "dtype": "bfloat16",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": PER_STEP,
        "max_steps": MICRO_BATCHES // PER_STEP,
        "method": case.method,
    }
    if case.method["name"] == "lora":
        given["target_modules"] = ["q_proj", "v_proj"]
    return read(None, given, check_method=method_from_source)


def _planned(shapes: Shapes, config: TrainConfig, *, its_way: bool) -> tuple[Memory, Span]:
    device = device_named("a100-40")
    counts = _counts(config, its_way)
    step = step_time(shapes, config.method, config, counts, device)
    assert step is not None
    memory = peak_memory(shapes, config.method, config, counts, device)
    return memory, step * config.max_steps  # type: ignore[operator]


def _counts(config: TrainConfig, its_way: bool) -> TokenCounts:
    """Of an epoch. The largest of so many micro-batches has four rows of the longest length."""
    examples = [_example(row, its_way) for row in rows(ROWS, longest=LONGEST)]
    size = config.micro_batch_size
    groups = [examples[i : i + size] for i in range(0, ROWS, size)]
    longest = sorted(examples, key=lambda example: -len(example.ids))[:size]
    batches = [micro_batch(group, not its_way, not its_way) for group in groups]
    mean = MicroBatch(*np.mean([astuple(batch) for batch in batches], axis=0).tolist())
    real, labels = (sum(counts) for counts in zip(*map(_lengths, examples), strict=True))
    largest = micro_batch(longest, not its_way, not its_way)
    return TokenCounts(ROWS, real, labels, round(mean.tokens * len(groups)), LONGEST, largest, mean)


def _lengths(example: Example) -> tuple[int, int]:
    return len(example.ids), sum(example.learned)


def _example(row: Row, all_labels: bool) -> Example:
    learned = [all_labels or i >= row.answer for i in range(len(row.ids))]
    return Example(row.ids, [False, *learned[1:]], "")


def _gb(memory: Memory) -> str:
    """In the article's unit, 10^9 bytes."""
    return f"{memory.total / GB:.1f} GB"


def _minutes(time: Span) -> str:
    low, expected, high = (round(s / 60) for s in (time.low, time.expected, time.high))
    return f"{expected:,} min ({low:,} to {high:,})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
