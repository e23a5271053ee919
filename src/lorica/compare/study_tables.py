"""From the results of a study to a table for each measure and side, and why a side has none."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lorica.compare.influence import Combine, Table, pseudo_values, table_of
from lorica.compare.intervals import unsteady_sides
from lorica.compare.pairs import NOT_RUN
from lorica.compare.results import Final, MeasureScores, SideResult, StudyResult

FORGOTTEN = "forgotten"
"""The loss on the "before" rows, after training minus before it."""
BEFORE = "before"
"""Under this name, StudyResult.base may have the loss of the base on the "before" rows."""


@dataclass(frozen=True)
class StudyTables:
    """tables: by measure and side, the goal first. failed: sides without any result, and why."""

    tables: Mapping[str, Mapping[str, Table]]
    failed: Mapping[str, str]
    notices: tuple[str, ...]


def tables_of(result: StudyResult, combine: Mapping[str, Combine]) -> StudyTables:
    """combine: by corpus measure, what the sums of its statistics come to."""
    failed = {side.name: why for side in result.sides if (why := failure(side, result.goal))}
    notices = [*failures(result, failed)]
    tables: dict[str, dict[str, Table]] = {}
    for measure in measures_of(result):
        tables[measure] = {}
        for side in result.sides:
            if side.name in failed or not (runs := runs_of(side, measure)):
                continue
            try:
                table = table_of(measure, {s: r[1] for s, r in runs.items()}, combine)
                if measure == FORGOTTEN:
                    table = minus_before(table, [r[0] for r in runs.values()], result.base)
                tables[measure][side.name] = table
            except ValueError as error:
                notices.append(f"{side.name} has no statistics of {error}")
    notices += unsteady(tables.get(result.goal, {}), result.reference)
    return StudyTables(tables, failed, tuple(notices))


def unsteady(tables: Mapping[str, Table], reference: str) -> Iterator[str]:
    """A notice on each side whose seeds differ far more: verdicts on it are less sure."""
    spreads = [float(t.values.std(ddof=1)) for t in tables.values() if len(t.values) > 1]
    for name, spread in unsteady_sides(tables).items():
        advice = "compare with a steadier reference" if name == reference else "add seeds"
        yield (
            f"{name} differs from seed to seed by {spread:.2g} (standard deviation), the "
            f"others by {np.median(spreads):.2g}: {advice}, or take its verdicts with care"
        )


def minus_before(after: Table, finals: list[Final], base: Mapping[str, MeasureScores]) -> Table:
    """The rise of the loss on the "before" rows, row by row where the base's rows are known."""
    rise = np.array([final.forgotten or 0.0 for final in finals])
    before = np.mean(after.values - rise)
    if BEFORE in base:
        rows, _ = pseudo_values(FORGOTTEN, base[BEFORE], {})
        before = rows[:, None] if len(rows) == len(after.rows) else before
    return replace(after, values=rise, rows=after.rows - before, scale="any")


def learned(
    table: Table, base: MeasureScores, measure: str, combine: Mapping[str, Combine]
) -> Table:
    """What a side gained on the base, paired by row; above 0: it is better.

    Errors: ValueError if the base was scored on other rows.
    """
    rows, _ = pseudo_values(measure, base, combine)
    if len(rows) != len(table.rows):
        raise ValueError(f"{measure}: the base was scored on different rows")
    sign = 1 if table.better == "higher" else -1
    return replace(
        table,
        values=sign * (table.values - base.value),
        rows=sign * (table.rows - rows[:, None]),
        better="higher",
        scale="difference",
    )


def failure(side: SideResult, goal: str) -> str:
    """Why a side has no result; "" if it has one. What diverged lost, whatever its numbers."""
    if runs_of(side, goal):
        return ""
    if errors := [final.error for final in side.finals if final.error]:
        return errors[0]
    if side.finals:
        return f"its {goal} is not a finite number"
    if side.trials and all(trial.loss is None for trial in side.trials):
        return "it diverged at every learning rate"
    return NOT_RUN


def runs_of(side: SideResult, measure: str) -> dict[int, tuple[Final, MeasureScores]]:
    """The runs of a side with finite scores of a measure, by seed."""
    runs = {}
    for final in sorted(side.finals, key=lambda final: final.seed):
        forgotten = measure == FORGOTTEN
        scores = final.before_scores if forgotten else final.scores.get(measure)
        if final.error or scores is None or (forgotten and final.forgotten is None):
            continue
        if math.isfinite(scores.value) and all(map(math.isfinite, scores.rows)):
            runs[final.seed] = (final, scores)
    return runs


def measures_of(result: StudyResult) -> list[str]:
    """The goal first, then the others in their order, then what was forgotten."""
    finals = [final for side in result.sides for final in side.finals]
    names = dict.fromkeys([result.goal, *(name for final in finals for name in final.scores)])
    return [*names, *([FORGOTTEN] if any(final.before_scores for final in finals) else [])]


def failures(result: StudyResult, failed: Mapping[str, str]) -> Iterator[str]:
    """Sides that failed, and sides that lack seeds which others have."""
    seeds = sorted({final.seed for side in result.sides for final in side.finals})
    for side in result.sides:
        if side.name in failed:
            yield f"{side.name} has no result: {failed[side.name]}"
            continue
        usable = runs_of(side, result.goal)
        for final in side.finals:
            if final.seed not in usable:
                reason = final.error or f"its {result.goal} is not a finite number"
                yield f"{side.name}, seed {final.seed} failed: {reason}"
        if missing := [str(seed) for seed in seeds if seed not in usable]:
            yield (
                f"{side.name} has no result with seed {', '.join(missing)}: it is compared on the "
                "other seeds, and what is missing does not count in its mean"
            )
