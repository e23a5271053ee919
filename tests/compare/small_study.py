"""A small study as `lorica compare` leaves it in its folder: 3 sides, 3 seeds, 40 test rows.

`lora r=8` is better than `lora r=2` on every row, `ia3` is as good as `lora r=2`; of `ia3` the last
seed diverged. The numbers are drawn, with a fixed seed; nothing is trained.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lorica.compare.assemble import study_result
from lorica.compare.records import Records
from lorica.compare.results import StudyResult
from lorica.compare.study import STUDY
from lorica.recipe.yaml_file import to_yaml

ROWS, SEEDS, STEPS = 40, (0, 1, 2), 60
LEVELS = {"lora r=2": 2.10, "lora r=8": 1.90, "ia3": 2.11}
RATES = {"lora r=2": 7e-3, "lora r=8": 7e-3, "ia3": 3e-2}
STUDY_SETTINGS: dict[str, Any] = {
    "base": "bundled",
    "data": {"path": "train.jsonl", "validation": "valid.jsonl"},
    "test": "test.jsonl",
    "measures": ["loss", "exact_match"],
    "goal": "loss",
    "seeds": list(SEEDS),
    "train": {"max_steps": STEPS, "micro_batch_size": 4},
    "rates": {"factors": [0.3, 1.0, 3.0], "rungs": 2, "seed": 1000},
    "sides": {
        "lora": {"method": {"name": "lora"}, "ranks": [2, 8]},
        "ia3": {"method": {"name": "ia3"}},
    },
}


def small_study(folder: Path) -> StudyResult:
    """Write the study's folder, and return its result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STUDY).write_text(to_yaml(STUDY_SETTINGS))
    Records(folder).append(records())
    return study_result(folder)


def records() -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    draw = np.random.default_rng(7)
    difficulty, weights = draw.normal(0, 0.3, ROWS), draw.integers(4, 12, ROWS)
    lines: list[dict[str, Any]] = [
        {
            "kind": "start",
            "name": "small",
            "versions": {"python": "3.12.0", "lorica": "0.1.0", "torch": "2.13.0"},
            "machine": "a processor, 2 threads",
            "settings": STUDY_SETTINGS,
            "base": {"model.safetensors": "c" * 64},
            "digests": {"train": "a" * 64, "test": "b" * 64},
            "notices": ["test.jsonl: 1 row is repeated"],
        }
    ]
    for name in LEVELS:
        method, _, rank = name.partition(" r=")
        inner = {"name": method, **({"r": int(rank)} if rank else {})}
        lines.append(
            {
                "kind": "side",
                "name": name,
                "method": method,
                "rank": int(rank) if rank else None,
                "settings": {"base": "bundled", "data": {"path": "train.jsonl"}, "method": inner},
            }
        )
    base = difficulty + 3.0
    lines.append({"kind": "base", "scores": _scores(base, weights, draw)})
    for name, level in LEVELS.items():
        for factor, worse in ((0.3, 0.2), (1.0, 0.0), (3.0, 0.1)):
            rate, half = RATES[name] * factor, level + worse + 0.1
            lines.append(_trial(name, rate, STEPS // 2, half))
            if factor >= 1:
                lines.append(_trial(name, rate, STEPS, level + worse))
        lines.append(_trial(name, RATES[name] * 9, STEPS // 2, None))
        lines.append({"kind": "rate", "side": name, "learning_rate": RATES[name]})
        lines.append(_cost(name))
        for seed in SEEDS:
            rows = difficulty + level + draw.normal(0, 0.05, ROWS) + draw.normal(0, 0.01)
            lines.append(_final(name, seed, rows, weights, draw))
    lines[-1] = {
        "kind": "final",
        "side": "ia3",
        "seed": SEEDS[-1],
        "learning_rate": RATES["ia3"],
        "error": "the loss of step 12 is not finite.",
    }
    return lines


def _trial(side: str, rate: float, steps: int, loss: float | None) -> dict[str, Any]:
    return {"kind": "trial", "side": side, "learning_rate": rate, "steps": steps, "loss": loss}


def _cost(name: str) -> dict[str, Any]:
    size = int(name.partition("r=")[2] or 1)
    return {
        "kind": "cost",
        "side": name,
        "seconds_per_step": 0.01 + 0.001 * size,
        "tokens_per_second": 50_000.0 / (10 + size),
        "peak_memory_bytes": 200_000_000 + 1_000_000 * size,
    }


def _scores(rows: np.ndarray, weights: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    hits = (draw.random(ROWS) < np.exp(-rows / 2)).astype(float)
    loss = float((rows * weights).sum() / weights.sum())
    return {
        "loss": {
            "value": loss,
            "better": "lower",
            "rows": rows.tolist(),
            "weights": weights.tolist(),
        },
        "exact_match": {"value": float(hits.mean()), "better": "higher", "rows": hits.tolist()},
    }


def _final(
    name: str, seed: int, rows: np.ndarray, weights: np.ndarray, draw: np.random.Generator
) -> dict[str, Any]:
    level = float(rows.mean())
    before = draw.normal(1.6 + 0.1 * (2.2 - level), 0.1, 10)
    size = int(name.partition("r=")[2] or 1)
    return {
        "kind": "final",
        "side": name,
        "seed": seed,
        "learning_rate": RATES[name],
        "scores": _scores(rows, weights, draw),
        "curve": [[step, level + 2 * 0.9**step] for step in range(1, STEPS + 1, 3)],
        "validation": [[step, level + 2 * 0.9**step + 0.02] for step in (0, 20, 40, STEPS)],
        "before_scores": {
            "value": float(before.mean()),
            "better": "lower",
            "rows": before.tolist(),
        },
        "forgotten": float(before.mean()) - 1.5,
        "samples": [["2 + 2 =", "4", "4"], ["Name a color.", "red", "<b>blue</b>"]],
        "ranks": {},
        "notices": [],
        "sizes": {"adapter_bytes": 4096 * size, "trained": 1024 * size, "total": 5_000_000},
    }
