"""A study that is being run: its sides and rows, its records, and the time that is left."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lorica import progress
from lorica.compare.clock import Clock, in_words
from lorica.compare.executor import Executor, InProcess
from lorica.compare.job_records import JobResult
from lorica.compare.records import Records
from lorica.compare.scoring import ScoreSettings
from lorica.compare.search import rungs_of
from lorica.compare.sides import Side
from lorica.compare.study import Study
from lorica.compare.study_rows import StudyRows
from lorica.compare.training_jobs import FinalScoring, Job, UnitRun, group
from lorica.errors import Stopped, listed
from lorica.training.signals import Signals

POLL = 0.2
"""Seconds between looks at whether a signal has come."""
UNKNOWN_COST = 0.1
"""Seconds of a step, where the cost of a side could not be measured."""


@dataclass(frozen=True)
class DueJob:
    """what: its units, for the user. expected, recording: seconds of its training and scoring."""

    job: Job
    what: str
    expected: float
    recording: float = 0.0


@contextmanager
def stopping(executor: Executor) -> Iterator[None]:
    """If the block ends early, the jobs that are being done end too: nothing waits for them."""
    try:
        yield
    except BaseException:
        executor.stop()
        raise


@dataclass
class StudyRun:
    """steps: of a run of each side. size: most runs in one pass. done, total: units."""

    study: Study
    sides: Sequence[Side]
    rows: StudyRows
    scoring: ScoreSettings
    folder: Path
    records: Records
    clock: Clock
    steps: dict[str, int]
    size: int
    done: int = 0
    total: int = field(default=0)
    executor: Executor = field(default_factory=InProcess)

    def run_folder(self, role: str, side: Side, which: str) -> Path:
        """Where a run lies: role ("search", "final"), side and rate or seed."""
        return self.folder / "runs" / f"{role}-{self.sides.index(side):02d}-{which}"

    def seconds(self, name: str, steps: int) -> float:
        """What `steps` steps of a side are expected to take alone."""
        cost = self.records.last("cost", side=name) or {}
        return steps * cost.get("seconds_per_step", UNKNOWN_COST)

    @property
    def scoring_seconds(self) -> float:
        """What scoring a run is expected to take: as long as scoring the base took."""
        spent = self.records.last("spent", sides=[])
        return 0.0 if spent is None else spent["seconds"]

    def jobs(
        self, runs: Sequence[UnitRun], until: int | None, scoring: FinalScoring | None = None
    ) -> list[Job]:
        """The jobs that train `runs`, enough of them for all workers."""
        return [
            Job(members, until, scoring) for members in group(runs, self.size, self.executor.size)
        ]

    def train(self, due: Sequence[DueJob]) -> Iterator[Job]:
        """Do jobs, as many at once as the executor can, and append the records of each.

        Yields: each one that has ended; the last ones are not begun if the budget is spent.
        Raises: ResourceError; Stopped on a signal: the records of what has ended are kept.
        """
        waiting, executor = deque(due), self.executor
        if executor.size == 1:
            while waiting and not self.clock.is_over:
                job = waiting.popleft()
                self._record(job, executor.run(job.job))
                yield job.job
            return
        running: dict[Future[JobResult], DueJob] = {}
        with Signals() as signals, ThreadPoolExecutor(executor.size) as threads, stopping(executor):
            while waiting or running:
                while waiting and len(running) < executor.size and not self.clock.is_over:
                    job = waiting.popleft()
                    running[threads.submit(executor.run, job.job)] = job
                if not running:
                    return
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    self._record(job, future.result())
                    yield job.job
                if signals.received:
                    raise Stopped("the study was stopped.", signal=signals.received)

    def _record(self, due: DueJob, result: JobResult) -> None:
        sides = [run.side for run in due.job.runs]
        seconds = result.training + result.recording
        self.records.append(
            [*result.records, {"kind": "spent", "sides": sides, "seconds": seconds}]
        )
        self.clock.training.note(due.expected, result.training)
        self.clock.scoring.note(due.recording, result.recording)
        self.count(len(result.records))
        names = listed(dict.fromkeys(sides), 3)
        failed = sum(1 for record in result.records if record.get("error"))
        early = f", {failed} ended early" if failed else ""
        left = in_words(self.clock.left / self.executor.size)
        self.announce(f"{due.what}: {names}{early}; {left} left")

    def trials_of(self, side: Side) -> int:
        """How many runs of the rate search a side has, those beyond an edge left out."""
        search = self.study.rates
        alive = 0 if search is None else len(side.rates(search.factors))
        if search is None or alive < 2:
            return 0
        count = 0
        for _ in rungs_of(self.steps[side.name], search.rungs):
            count, alive = count + alive, (alive + 1) // 2
        return count

    def plan_total(self, search_units: int) -> None:
        """Set the total during the search: its units that are left are known only step by step,
        as rates beyond an edge may be tried, and rates that diverged are not."""
        self.total = self.done + search_units + len(self.sides) * len(self.study.seeds)

    def count(self, units: int) -> None:
        self.done += units
        self.total = max(self.total, self.done)

    def announce(self, text: str) -> None:
        """One line of progress."""
        progress.announce(f"[{self.done}/{self.total}] {text}")
