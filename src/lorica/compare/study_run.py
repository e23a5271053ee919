"""A study that is being run: its sides and rows, its records, and the time that is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorica import progress
from lorica.compare.clock import Clock, in_words
from lorica.compare.records import Records
from lorica.compare.scoring import ScoreSettings
from lorica.compare.search import rungs_of
from lorica.compare.sides import Side
from lorica.compare.study import Study
from lorica.compare.study_rows import StudyRows
from lorica.compare.training_jobs import Job, UnitRun, train_job
from lorica.errors import listed

UNKNOWN_COST = 0.1
"""Seconds of a step, where the cost of a side could not be measured."""


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

    def train(
        self,
        job: Job,
        what: str,
        expected: float,
        records_of: Callable[[dict[UnitRun, str]], list[dict[str, Any]]],
        scoring: float = 0.0,
    ) -> bool:
        """Train a job and append its records. False: the budget is spent, nothing was started.

        what: the units, for the user. expected, scoring: seconds of the training and of what
        records_of does. records_of: from the errors of the runs that ended early.
        """
        if self.clock.is_over:
            return False
        began = self.clock.now()
        errors = train_job(job)
        trained = self.clock.now()
        records = records_of(errors)
        ended = self.clock.now()
        seconds = ended - began
        sides = [run.side for run in job.runs]
        self.records.append([*records, {"kind": "spent", "sides": sides, "seconds": seconds}])
        self.clock.training.note(expected, trained - began)
        self.clock.scoring.note(scoring, ended - trained)
        self.count(len(records))
        names = listed(dict.fromkeys(sides), 3)
        failed = sum(1 for record in records if record.get("error"))
        early = f", {failed} ended early" if failed else ""
        self.announce(f"{what}: {names}{early}; {in_words(self.clock.left)} left")
        return True

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
