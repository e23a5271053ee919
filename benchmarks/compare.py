"""A study by its workers against the same runs one after another.

    python -m benchmarks.compare --base BASE --data ROWS [--steps 40] [--repeats 2]

Both train the same runs (LoRA and DoRA at three ranks, two seeds) to their end. One after another:
one process with all cores, each run alone. The study: its own workers, start included, and passes
that runs share. The ratio is that of the times by the clock, each the best of the repeats.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lorica.compare.executor import InProcess, worker_processes
from lorica.compare.sides import Side
from lorica.compare.training_jobs import MAX_RUNS, Job, group, run_of
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
    settings = {
        "base": words.base,
        "data": {"path": words.data, "validation": 0.02},
        "max_steps": words.steps,
        "micro_batch_size": words.rows,
        "learning_rate": 2e-3,
    }
    configs = [read(None, {**settings, "method": method}) for method in METHODS]
    alone, together = list[float](), list[float]()
    for _ in range(words.repeats):
        alone.append(measure(configs, words.steps, size=1, workers=1))
        together.append(measure(configs, words.steps, MAX_RUNS, torch.get_num_threads()))
    print(
        f"{len(METHODS) * len(SEEDS)} runs of {words.steps} steps of {words.rows} rows on "
        f"{words.base}: one after another {min(alone):.1f} s, by "
        f"{torch.get_num_threads()} workers {min(together):.1f} s: "
        f"{min(alone) / min(together):.2f} times faster"
    )


def measure(configs: Sequence[TrainConfig], steps: int, size: int, workers: int) -> float:
    """Seconds of all runs, at most `size` in one pass."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(f"side {i}", None, config, 2e-3) for i, config in enumerate(configs)]
        runs = [
            run_of(side, Path(folder) / f"{i}-{seed}", 2e-3, seed, steps)
            for seed in SEEDS
            for i, side in enumerate(sides)
        ]
        jobs = [Job(members, steps) for members in group(runs, size, workers)]
        began = time.perf_counter()
        if workers == 1:
            results = [InProcess().run(job) for job in jobs]
        else:
            with worker_processes(workers, 1) as executor, ThreadPoolExecutor(workers) as threads:
                results = list(threads.map(executor.run, jobs))
        seconds = time.perf_counter() - began
        assert not [r for result in results for r in result.records if r["error"]]
        return seconds


if __name__ == "__main__":
    main()
