"""What `lorica plan` says of a run, from the tokens that were counted when it was measured.

Predictions are made when the page is written, so the page and its test hold for the constants of
lorica.plan as they are now.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.plan.bases import RANDOM
from benchmarks.plan.grid import CASES, OTHERS, Case
from lorica.plan.devices import Device
from lorica.plan.memory import peak_memory
from lorica.plan.shapes import Shapes, read_shapes
from lorica.plan.time import SHARES, Rates, seconds, work_of
from lorica.plan.tokens import EvaluationBatch, MicroBatch, TokenCounts
from lorica.recipe.catalogue import method as catalogued
from lorica.training.settings import TrainSettings

BY_NAME: dict[str, Case] = {case.name: case for case in (*CASES, *OTHERS)}
STORIES = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
"""config.json of stories260K, whose weights are not in the repository."""


@cache
def shapes_of(base: str) -> Shapes:
    """The sizes of a base of the runs, without its weights."""
    if base == "5M":
        return read_shapes("bundled")
    config: dict[str, Any] = STORIES
    if base != "260K":
        shape = RANDOM[base]
        config = {
            "model_type": "llama",
            "hidden_size": shape.width,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "vocab_size": shape.vocabulary,
        }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return read_shapes(folder)


def settings_of(case: Case) -> TrainSettings:
    """The settings of a case, with the defaults of its method."""
    recipe = case.recipe()
    defaults = {option.name: option.value for option in catalogued(case.method).options}
    recipe["method"] = {**defaults, **recipe["method"]}
    return TrainSettings(data={"path": "rows.jsonl"}, **recipe)  # type: ignore[arg-type]


def peak(line: dict[str, Any]) -> int:
    """Bytes that are predicted for a measured run."""
    case = BY_NAME[line["name"]]
    settings = settings_of(case)
    cpu = Device("cpu", "cpu", 0, "the machine of the runs", processors=line["processors"])
    counts = counts_of(line)
    return peak_memory(shapes_of(case.base), settings.method, settings, counts, cpu).total


def planned_step(line: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of a step, planned without measuring one: at best, expected, at worst."""
    case = BY_NAME[line["name"]]
    settings, counts = settings_of(case), counts_of(line)
    cpu = Device("cpu", "cpu", 0, "the machine of the runs")
    work = work_of(shapes_of(case.base), settings.method, settings, counts.mean, counts.conditions)
    best, expected, worst = (
        seconds(work, Rates(**line["rates"]), cpu, share, 1) for share in SHARES["cpu"]
    )
    return best, expected, worst


def measured_step(line: dict[str, Any]) -> float:
    """Seconds of a step by `--measure`, scaled to the tokens of the steps that were timed."""
    steps = line["probe"]["steps"]
    per_token = sum(step["process"] for step in steps) / sum(step["tokens"] for step in steps)
    return per_token * line["step_tokens"]


def counts_of(line: dict[str, Any]) -> TokenCounts:
    counts = dict(line["counts"])
    for key in ("largest", "mean"):
        counts[key] = MicroBatch(**counts[key])
    if counts["evaluated"] is not None:
        counts["evaluated"] = EvaluationBatch(**counts["evaluated"])
    counts["conditions"] = tuple(counts["conditions"])
    return TokenCounts(**counts)
