"""A study of seconds: rows, settings, and a base whose costs are not measured."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lorica.compare import runner
from lorica.compare.results import StudyResult
from lorica.compare.runner import run_study
from lorica.compare.study import read_study
from lorica.recipe.yaml_file import to_yaml

WORDS = ("cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "field")
COST = {"seconds_per_step": 0.01, "tokens_per_second": 1e4, "peak_memory_bytes": 2**28}


def write_rows(folder: Path) -> None:
    """48 training, 12 validation and 12 test rows, no two of them alike; 6 rows for forgetting."""
    rows = [
        {"prompt": f"Once {a} {b}:", "completion": f" the {b} ran to {a}"}
        for a in WORDS
        for b in WORDS
    ]
    for name, start, stop in (("train", 0, 48), ("valid", 48, 60), ("test", 60, 72)):
        write_lines(folder / f"{name}.jsonl", rows[start:stop])
    write_lines(folder / "before.jsonl", [{"text": f"There was a {word}."} for word in WORDS[:6]])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_study(folder: Path, base: Path, **changed: Any) -> Path:
    """A study of LoRA and IA3, with two seeds. `changed` stands over it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder)
    settings: dict[str, Any] = {
        "base": str(base),
        "data": {"path": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")},
        "test": str(folder / "test.jsonl"),
        "before": str(folder / "before.jsonl"),
        "seeds": [0, 1],
        "rates": {"factors": [0.01, 1.0, 100.0], "rungs": 2},
        "train": {"max_steps": 2, "micro_batch_size": 4},
        "sides": {"lora": {"method": {"name": "lora"}, "ranks": [2]}, "ia3": {"method": "ia3"}},
    }
    path = folder / "study.yaml"
    path.write_text(to_yaml(settings | changed))
    return path


def run(path: Path, output: Path, **options: Any) -> StudyResult:
    return run_study(*read_study(path), output, **options)


def without_costs(result: StudyResult) -> dict[str, Any]:
    """A result as plain data, but for what is measured anew in each study, and its name."""
    plain = asdict(result)
    for side in plain["sides"]:
        del side["cost"]
    del plain["name"]
    return plain


def fix_costs(patch: pytest.MonkeyPatch) -> None:
    """Let no process be started to measure the cost of a side, and no load be noticed."""
    patch.setattr(runner, "others_running", lambda: 0.0)
    patch.setattr(runner, "measure_cost", lambda side, folder: COST)
