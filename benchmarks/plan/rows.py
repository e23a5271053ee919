"""Rows as long as Alpaca's, in Alpaca's format; words come from the bundled base's own texts."""

import json
import math
import random
from pathlib import Path

from world.texts import documents

TRAIN, VALIDATION = 24, 4
CONDITIONS = ("north", "south", "east")


def write(folder: Path) -> dict[str, str]:
    """train.jsonl and valid.jsonl in `folder`, each plain and with conditions (conditions-*)."""
    paths = {}
    for name, count, seed in (("train", TRAIN, 0), ("valid", VALIDATION, 1)):
        for prefix in ("", "conditions-"):
            path = folder / f"{prefix}{name}.jsonl"
            lines = [json.dumps(row) for row in rows(count, seed, conditions=bool(prefix))]
            path.write_text("\n".join(lines) + "\n")
            paths[prefix + name] = str(path)
    return paths


def rows(count: int, seed: int, *, conditions: bool) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = [word for _, text in documents(200, seed=0) for word in text.split()]

    def text(median: float, spread: float) -> str:
        n = max(1, round(draw.lognormvariate(math.log(median), spread)))
        return " ".join(draw.choice(words) for _ in range(min(n, 160)))

    return [
        {
            "instruction": text(9, 0.45),
            "input": text(10, 0.8) if draw.random() < 0.4 else "",
            "output": text(32, 0.95),
            **({"condition": CONDITIONS[i % len(CONDITIONS)]} if conditions else {}),
        }
        for i in range(count)
    ]
