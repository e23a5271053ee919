"""Take three steps of a run and print what they cost as JSON: the fresh process of `plan.measure`.

    python -m lorica.plan.probe FOLDER < settings.json

Everything is built as `lorica train` builds it, in FOLDER. Only the rows are chosen: of the first
steps of the run those whose tokens are at a sixth, the middle and five sixths of the range, so that
they stand for short steps and long ones. A first step is taken before, and not timed.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lorica.core.peak_memory import peak_memory
from lorica.errors import LoricaError
from lorica.training.build import build_run
from lorica.training.config import TrainConfig, resolved
from lorica.training.freed_memory import keep_freed_memory
from lorica.training.loop import apply_update, compute_gradients
from lorica.training.placement import choose_placement
from lorica.training.plan import row_order
from lorica.training.prepare import load_rows, with_learning_rate
from lorica.training.resume import save_checkpoint
from lorica.training.run import Run
from lorica.training.state import RunState
from lorica.training.step import stepper_for
from lorica.training.validation import mean_loss

STEPS = 200
"""First steps of the run from which the measured ones are chosen."""
QUANTILES = (1 / 6, 1 / 2, 5 / 6)
VALIDATION_ROWS = 16
STAT, UPTIME = Path("/proc/self/stat"), Path("/proc/uptime")


class Clock:
    """Seconds since it was started: on the wall, and of this process."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, process = self.began
        return {"wall": time.perf_counter() - wall, "process": time.process_time() - process}


def measure(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The cost of the steps of a run, of an evaluation and of a checkpoint."""
    config, chosen = with_learning_rate(config.model_copy(update={"output": str(folder / "run")}))
    if not torch.accelerator.is_available():
        keep_freed_memory()
    placement = choose_placement(config)
    run = Run(folder / "run")
    with run.beginning(resolved(config)), run.lock():
        state = build_run(config, load_rows(config), run, placement, show=False, notices=chosen)
    try:
        return _measure(state)
    finally:
        state.close()


def _measure(state: RunState) -> dict[str, Any]:
    plan, stepper, data = state.plan, stepper_for([state]), state.data
    lengths, seed, size = data.train.lengths, state.config.seed, plan.rows_per_step
    started = {"wall": _age(), "process": time.process_time()}
    per_step = [
        int(lengths[row_order(len(lengths), seed, start, size, data.mixture)].sum())
        for start in _starts(state)
    ]
    by_tokens = sorted(range(len(per_step)), key=per_step.__getitem__)
    middle = by_tokens[len(by_tokens) // 2]
    numbers = [by_tokens[int(q * len(by_tokens))] for q in QUANTILES]
    numbers = numbers[: max(plan.total - 1, 0)]  # a method's schedule ends with the run
    steps = []
    for number in (middle, *numbers):
        clock = Clock()
        state.progress.rows = number * plan.rows_per_step
        (outcome,) = compute_gradients([state], stepper)
        apply_update(state, outcome, clock.read()["wall"])
        _wait()
        steps.append({**clock.read(), "tokens": outcome.tokens})
    result = {
        "start": started,
        "first": steps[0],
        "steps": steps[1:] or steps,
        "mean_tokens": plan.rows_per_step * float(lengths.mean()),
        "evaluation": _evaluation(state),
        "evaluations": _evaluations(state),
        "total": plan.total,
    }
    clock = Clock()
    save_checkpoint(state)
    result["checkpoint"] = clock.read()
    result["checkpoints"] = -(-plan.total // plan.save_steps)
    result["peak"] = peak_memory(state.placement.device)
    return result


def _starts(state: RunState) -> range:
    """The row of the run's endless stream with which each of its first steps begins."""
    plan = state.plan
    return range(0, min(plan.total, STEPS) * plan.rows_per_step, plan.rows_per_step)


def _evaluation(state: RunState) -> dict[str, float]:
    """Seconds of one pass over the validation rows, from a few of them. Zero without any."""
    rows = state.data.validation
    if not len(rows):
        return {"wall": 0.0, "process": 0.0}
    few, clock = rows[:VALIDATION_ROWS], Clock()
    mean_loss(state.base.model, few, state.adapter.name)
    share = float(rows.lengths.sum()) / float(few.lengths.sum())
    return {key: seconds * share for key, seconds in clock.read().items()}


def _evaluations(state: RunState) -> int:
    """Passes over the validation rows: before the first step, after the last, and between."""
    every = state.plan.eval_steps
    return 2 + (0 if every is None else (state.plan.total - 1) // every)


def _age() -> float:
    """Seconds since this process was started; where the system does not say, its processor time."""
    try:
        began = float(STAT.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        up = float(UPTIME.read_text(encoding="utf-8").split()[0])
    except OSError:  # not Linux
        return time.process_time()
    return up - began / os.sysconf("SC_CLK_TCK")


def _wait() -> None:
    """Until the device has done what it was asked to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    config = TrainConfig.model_validate(json.load(sys.stdin))
    try:
        answer = measure(config, Path(sys.argv[1]))
    except LoricaError as error:
        facts = {key: str(value) for key, value in error.facts.items()}
        answer = {"error": type(error).__name__, "what": error.what, "fix": error.fix}
        answer["facts"] = facts
    print(json.dumps(answer), file=out)


if __name__ == "__main__":
    main()
