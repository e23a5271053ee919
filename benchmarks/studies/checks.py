"""Checks of a claim on the result of a study: what was compared, what came out, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from lorica.compare.influence import Table
from lorica.compare.intervals import figure_of, variance_of
from lorica.compare.pairs import difference, pooled_over
from lorica.compare.results import Cost, StudyResult
from lorica.compare.study_tables import FORGOTTEN, tables_of
from lorica.compare.verdict import combines_of

Verdict = Literal["holds", "does not hold", "not shown"]
CLOSE = 0.02
"""Relative: values nearer than that are taken for alike."""
NOISE = {"time": 0.1, "memory": 0.03, "file": 0.0}
"""By how much a cost that is measured once may be off, relative; nearer to a bound than that, a
claim is not shown."""
COSTS = {"time": "seconds_per_step", "memory": "peak_memory_bytes", "file": "adapter_bytes"}


@dataclass(frozen=True)
class Outcome:
    """compared, figure: in words."""

    compared: str
    figure: str
    verdict: Verdict


@dataclass(frozen=True)
class Measured:
    """A study's tables by measure and side, and its costs by side."""

    goal: str
    tables: Mapping[str, Mapping[str, Table]]
    costs: Mapping[str, Cost]

    @classmethod
    def of(cls, result: StudyResult) -> "Measured":
        tables = tables_of(result, combines_of(result)[0]).tables
        costs = {side.name: side.cost for side in result.sides if side.cost is not None}
        return cls(result.goal, tables, costs)

    def interval(self, measure: str, side: str, other: str) -> tuple[float, float, float]:
        """side - other: its value, and the bounds of the 95 % interval over rows and seeds."""
        tables = self.tables[measure]
        pair = difference(tables[side], tables[other])
        figure = figure_of(pair, variance_of(pair, pooled_over(tables, side, other)))
        return figure.value, figure.over_both.low, figure.over_both.high


class Check(Protocol):
    def outcome(self, study: Measured) -> Outcome: ...


@dataclass(frozen=True)
class Better:
    """side is better than other. measure: None: the goal."""

    side: str
    other: str
    measure: str | None = None

    def outcome(self, study: Measured) -> Outcome:
        measure = self.measure or study.goal
        value, low, high = study.interval(measure, self.side, self.other)
        sign = 1 if study.tables[measure][self.side].better == "higher" else -1
        verdict: Verdict = "not shown"
        if low > 0 or high < 0:
            verdict = "holds" if sign * value > 0 else "does not hold"
        return Outcome(*_in_words(measure, self.side, self.other, value, low, high), verdict)


@dataclass(frozen=True)
class Alike:
    """side is within `within` of other, relative to it. measure: None: the goal."""

    side: str
    other: str
    within: float = CLOSE
    measure: str | None = None

    def outcome(self, study: Measured) -> Outcome:
        measure = self.measure or study.goal
        value, low, high = study.interval(measure, self.side, self.other)
        margin = self.within * abs(study.tables[measure][self.other].value)
        verdict: Verdict = "not shown"
        if -margin <= low and high <= margin:
            verdict = "holds"
        elif low > margin or high < -margin:
            verdict = "does not hold"
        compared, figure = _in_words(measure, self.side, self.other, value, low, high)
        return Outcome(compared, f"{figure}; alike: within ±{margin:.3g}", verdict)


@dataclass(frozen=True)
class Costs:
    """What side costs over what other costs, at least `low` and at most `high` times as much."""

    cost: str
    side: str
    other: str
    low: float = 0.0
    high: float = float("inf")

    def outcome(self, study: Measured) -> Outcome:
        one, other = (_cost(study, name, self.cost) for name in (self.side, self.other))
        ratio, noise = one / other, 1 + NOISE[self.cost]
        verdict: Verdict = "not shown"
        if self.low * noise <= ratio <= self.high / noise:
            verdict = "holds"
        elif ratio < self.low / noise or ratio > self.high * noise:
            verdict = "does not hold"
        return Outcome(f"{self.cost}: {self.side} / {self.other}", f"{ratio:.3g}", verdict)


@dataclass(frozen=True)
class SavesMoreMemory:
    """The memory that `instead` of `of` saves is larger for the second pair than for the first."""

    first: tuple[str, str]
    second: tuple[str, str]

    def outcome(self, study: Measured) -> Outcome:
        saved = [
            (_cost(study, of, "memory") - _cost(study, instead, "memory")) / 2**20
            for of, instead in (self.first, self.second)
        ]
        names = " and ".join(f"{of} − {instead}" for of, instead in (self.first, self.second))
        verdict: Verdict = "holds" if saved[1] > max(saved[0], 0) else "does not hold"
        return Outcome(f"memory: {names}", f"{saved[0]:,.0f} MiB and {saved[1]:,.0f} MiB", verdict)


@dataclass(frozen=True)
class Steady:
    """The goal of every side differs from seed to seed by less than `within` of its value."""

    within: float = CLOSE

    def outcome(self, study: Measured) -> Outcome:
        tables = study.tables[study.goal]
        spreads = {
            name: float(table.values.std(ddof=1)) / abs(table.value)
            for name, table in tables.items()
            if len(table.values) > 1
        }
        worst = max(spreads, key=lambda name: spreads[name])
        low, high = min(spreads.values()), spreads[worst]
        verdict: Verdict = "holds" if high < self.within else "does not hold"
        figure = f"{low:.1%} to {high:.1%} of the {study.goal}, most in {worst}"
        return Outcome("standard deviation over the seeds, all sides", figure, verdict)


def _in_words(
    measure: str, side: str, other: str, value: float, low: float, high: float
) -> tuple[str, str]:
    name = measure.replace("_", " ") if measure != FORGOTTEN else "forgotten"
    return f"{name}: {side} − {other}", f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cost(study: Measured, side: str, cost: str) -> float:
    return float(getattr(study.costs[side], COSTS[cost]) or float("nan"))
