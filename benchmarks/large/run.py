"""Run the sides, one fresh process each, and keep what each cost."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchmarks.large as package
from benchmarks.large import page
from benchmarks.large.shapes import SHAPES, SHARDS, write
from benchmarks.large.worker import SIDES
from benchmarks.plan.run import machine

RESULTS = Path(__file__).parents[1] / "results/large.json"
LIMIT = 1800.0
ROW = "Once upon a time there was a red ball and a dog in the big park of the town. "
TRAIN = {
    "lorica train nf4": {"dtype": "bfloat16", "quantisation": "nf4"},
    "lorica train --offload disk": {"dtype": "auto", "offload": "disk"},
}
"""Whole commands: rows, load, checks, evaluation before and after, one step, checkpoint."""


def measure_side(side: str, base: Path, limit: float) -> dict[str, Any]:
    """What benchmarks.large.worker prints; "failed": why a side has no step."""
    command = [sys.executable, "-m", "benchmarks.large.worker", side, str(base)]
    lines, failed = _output(command, limit)
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    result: dict[str, Any] = answers[-1] if answers else {}
    return result | ({"failed": failed} if failed else {})


def measure_train(settings: dict[str, Any], base: Path, limit: float) -> dict[str, Any]:
    """The peak of `lorica train --max_steps 1` on a row of 64 tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("train", "valid"):
            row = {"prompt": ROW, "completion": ROW}
            (folder / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
        flags = {
            "base": base,
            "data.path": folder / "train.jsonl",
            "data.validation": folder / "valid.jsonl",
            "max_steps": 1,
            "micro_batch_size": 1,
            "output": folder / "run",
            **settings,
        }
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        _, failed = _output([sys.executable, "-m", "lorica", "train", *words], limit)
        events = folder / "run/events.jsonl"
        steps = [json.loads(x) for x in events.read_text().splitlines()] if events.exists() else []
        own = [event for event in steps if event["event"] == "step"]
        if failed or not own:
            return {"failed": failed or "no step"}
        result = json.loads((folder / "run/results.json").read_text())
        return {"peak": result["peak_memory_bytes"], "tokens": own[-1]["tokens"]}


def _output(command: list[str], limit: float) -> tuple[list[str], str | None]:
    """(lines of stdout, why the process did not end well)."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0].splitlines(), f"not done after {limit:,.0f} s"
    if process.returncode < 0:  # of what it wrote, the last line is any warning
        return out.splitlines(), f"ended by signal {-process.returncode}"
    last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
    return out.splitlines(), last[0][:300] if process.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large",
        description=package.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="where the shapes are kept")
    parser.add_argument("--only", help="words that a shape and side must have: '1B lorica'")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a process at most")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the page from the results; no runs")
    words = parser.parse_args()
    results = json.loads(words.results.read_text()) if words.results.exists() else {}
    if words.write:
        page.write(results, words.write)
        return
    if words.folder is None:
        parser.error("--folder is needed")
    for shape, side in ((shape, side) for shape in SHAPES for side in (*SIDES, *TRAIN)):
        name = f"{shape}, {side}"
        if words.only and words.only not in name:
            continue
        base = write(SHAPES[shape], words.folder.resolve() / shape)
        if side in TRAIN:
            result = measure_train(TRAIN[side], base, words.limit)
        else:
            result = measure_side(side, base, words.limit)
        sizes = [file.stat().st_size for file in base.glob("*.safetensors")]
        about = {"machine": machine(), "base": sum(sizes), "shards": SHARDS, "shard": max(sizes)}
        results[name] = result | about
        print(f"{name}: {result}", flush=True)
        order = [f"{shape}, {side}" for shape in SHAPES for side in (*SIDES, *TRAIN)]
        kept = {name: results[name] for name in order if name in results}
        words.results.write_text(json.dumps(kept, indent=1) + "\n")
