"""What a study will do and take, before anything is trained: the dry run of `lorica compare`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorica.cli.planned import size, span
from lorica.compare.rate_runs import search_steps
from lorica.compare.sides import Side
from lorica.compare.study_run import StudyRun
from lorica.compare.training_jobs import UnitRun, group, run_of
from lorica.errors import LoricaError, counted
from lorica.plan.current_device import current_device
from lorica.plan.estimate import Estimate, estimate
from lorica.plan.time import Span


@dataclass(frozen=True)
class PlannedStudy:
    """seconds: of training, one run after another; None: not known. memory: bytes of the largest
    pass; runs: how many it trains at once. unknown: why there is no plan; "" if there is one.
    """

    run: StudyRun
    seconds: Span | None = None
    memory: int | None = None
    runs: int = 0
    unknown: str = ""

    def lines(self) -> Iterator[str]:
        run = self.run
        yield (
            f"{counted(len(run.sides), 'side')}, {counted(len(run.study.seeds), 'seed')}, "
            f"{counted(run.total, 'unit')}; {counted(run.rows.train, 'training row')}, "
            f"{counted(run.rows.test, 'test row')}; measured: {', '.join(run.study.all_measures)}"
        )
        width = max(len(side.name) for side in run.sides)
        for side in run.sides:
            steps = counted(run.steps[side.name], "step")
            words = ", ".join(f"{rate:g}" for rate in _rates(run, side))
            yield f"  {side.name:<{width}}  {steps}, learning rates {words}"
        if self.memory is not None:
            pass_of = f"the largest pass trains {counted(self.runs, 'run')} at once"
            yield f"planned: {pass_of}, with {size(self.memory)} of memory"
        if self.seconds is not None:
            time = f"{span(self.seconds)} of training, one run after another"
            yield f"planned: {time}, without the scoring of the test rows; workers take less"
        elif not self.unknown:
            yield "planned: the time is not known before each side is timed, as the study begins"
        if self.unknown:
            yield f"  note: time and memory are not known: {self.unknown}"
        yield from (f"  note: {notice}" for notice in run.rows.notices)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        run = self.run
        return {
            "units": run.total,
            "seeds": run.study.seeds,
            "measures": run.study.all_measures,
            "training_rows": run.rows.train,
            "test_rows": run.rows.test,
            "sides": {
                side.name: {
                    "method": side.method,
                    "rank": side.rank,
                    "steps": run.steps[side.name],
                    "learning_rates": _rates(run, side),
                }
                for side in run.sides
            },
            "training_seconds": None if self.seconds is None else asdict(self.seconds),
            "largest_pass": {"runs": self.runs, "memory_bytes": self.memory},
            "notices": [*run.rows.notices, *([self.unknown] if self.unknown else [])],
        }


def plan_study(run: StudyRun) -> PlannedStudy:
    """The plan of a study on this machine."""
    try:
        device = current_device()
        estimates = {side.name: estimate(side.config, device) for side in run.sides}
    except LoricaError as error:
        return PlannedStudy(run, unknown=error.what)
    memory, runs = max((_memory(runs, estimates), len(runs)) for runs in _passes(run))
    return PlannedStudy(run, _seconds(run, estimates), memory, runs)


def _rates(run: StudyRun, side: Side) -> list[float]:
    search = run.study.rates
    return side.rates(search.factors) if search else [side.centre]


def _passes(run: StudyRun) -> Iterator[tuple[UnitRun, ...]]:
    """The passes of the first rung of the search, and of the final runs."""
    place = Path("runs")
    searched = [
        run_of(side, place, rate, 0, 1)
        for side in run.sides
        if search_steps(run, side)
        for rate in _rates(run, side)
    ]
    final = [run_of(s, place, s.centre, seed, 1) for seed in run.study.seeds for s in run.sides]
    yield from group(searched, run.size)
    yield from group(final, run.size)


def _memory(runs: Sequence[UnitRun], estimates: dict[str, Estimate]) -> int:
    """Bytes of a pass: one base, and of each run what it needs beside it."""
    shared, own = [], []
    for unit in runs:
        memory = estimates[unit.side].memory
        shared.append(memory.weights + memory.runtime)
        own.append(memory.total - shared[-1])
    return max(shared) + sum(own)


def _seconds(run: StudyRun, estimates: dict[str, Estimate]) -> Span | None:
    total = Span(0.0, 0.0, 0.0)
    for side in run.sides:
        planned = estimates[side.name]
        if planned.step is None or planned.run is None:
            return None
        total += planned.run * len(run.study.seeds) + planned.step * search_steps(run, side)
    return total
