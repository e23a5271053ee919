"""A study's runs in shared passes against the same runs one after another.

    python -m benchmarks.compare --base BASE --data ROWS [--steps 40] [--repeats 2]

Both train the same runs (LoRA and DoRA at three ranks, two seeds) to their end, interleaved, in one
process. The ratio is that of their process times, each the best of the repeats.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lorica.compare.sides import Side
from lorica.compare.training_jobs import MAX_RUNS, Job, UnitRun, group, run_of, train_job
from lorica.training.config import TrainConfig, read

METHODS = [{"name": name, "r": r} for name in ("lora", "dora") for r in (2, 4, 8)]
SEEDS = (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--data", required=True, help="training rows")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4, help="micro_batch_size")
    parser.add_argument("--repeats", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(1)
    data = {"path": words.data, "validation": 0.02}
    configs = [
        read(
            None,
            {
                "base": words.base,
                "data": data,
                "method": method,
                "max_steps": words.steps,
                "micro_batch_size": words.rows,
                "learning_rate": 2e-3,
            },
        )
        for method in METHODS
    ]
    seconds: dict[int, list[float]] = {1: [], MAX_RUNS: []}
    for _ in range(words.repeats):
        for size in seconds:
            seconds[size].append(measure(configs, words.steps, size))
    alone, together = (min(times) for times in seconds.values())
    runs = len(METHODS) * len(SEEDS)
    print(
        f"{runs} runs of {words.steps} steps of {words.rows} rows on {words.base}: one after "
        f"another {alone:.1f} s, at most {MAX_RUNS} in a pass {together:.1f} s of process time: "
        f"{alone / together:.2f} times faster"
    )


def measure(configs: Sequence[TrainConfig], steps: int, size: int) -> float:
    """Process time of all runs, `size` in one pass."""
    with tempfile.TemporaryDirectory() as folder:
        runs: list[UnitRun] = []
        for seed in SEEDS:
            for i, config in enumerate(configs):
                side = Side(f"side {i}", None, config, 2e-3)
                runs.append(run_of(side, Path(folder) / f"{i}-{seed}", 2e-3, seed, steps))
        jobs: list[Job] = group(runs, None, size)
        began = time.process_time()
        for job in jobs:
            assert not train_job(job)
        return time.process_time() - began


if __name__ == "__main__":
    main()
