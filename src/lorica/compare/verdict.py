"""What a study shows: each side with its intervals, compared with the reference, and in words."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from lorica.compare.fronts import fronts
from lorica.compare.influence import Combine, Table
from lorica.compare.intervals import Figure, figure_of, variance_of
from lorica.compare.pairs import Comparison, compare, may_be_best, order
from lorica.compare.results import Better, StudyResult
from lorica.compare.sentences import sentences
from lorica.compare.study_tables import FORGOTTEN, learned, tables_of
from lorica.errors import LoricaError
from lorica.evaluation.task import Task


@dataclass(frozen=True)
class SideMeasure:
    """One measure of one side, the mean over its seeds.

    by_seed: the value of each seed. spread: the standard deviation between these repeats; None:
    there is one.
    """

    better: Better
    figure: Figure
    by_seed: Mapping[int, float]
    spread: float | None


@dataclass(frozen=True)
class Tradeoff:
    """What a side learned of the goal (above 0: it is better than the base), and what it forgot
    (above 0: its loss on the "before" rows rose)."""

    side: str
    learned: Figure
    forgotten: Figure


@dataclass(frozen=True)
class StudyVerdict:
    """sides: by side and measure. failed: sides without any result, and why. comparisons: with the
    reference, by measure; those of the goal decide. ranking: by the mean of the goal, failed sides
    last. may_be_best: the best side is one of these, with 95 % confidence. fronts: by cost
    ("time", "memory", "file size"), the names on it. sentences: which is best; what cannot be
    distinguished; what it costs, and what would show more.
    """

    goal: str
    better: Better
    reference: str
    sides: Mapping[str, Mapping[str, SideMeasure]]
    failed: Mapping[str, str]
    comparisons: Mapping[str, tuple[Comparison, ...]]
    ranking: tuple[str, ...]
    may_be_best: tuple[str, ...]
    fronts: Mapping[str, tuple[str, ...]]
    tradeoffs: tuple[Tradeoff, ...]
    sentences: tuple[str, str, str]
    notices: tuple[str, ...]


def verdict_of(result: StudyResult, combine: Mapping[str, Combine] | None = None) -> StudyVerdict:
    """The statistics of a study.

    combine: by corpus measure, what the sums of its statistics come to; None: as the tasks of
    these names have it.
    """
    notices: list[str] = []
    if combine is None:
        combine, notices = combines_of(result)
    study = tables_of(result, combine)
    goal, sides = study.tables[result.goal], {side.name: side for side in result.sides}
    better: Better = "lower"
    for table in goal.values():
        better = table.better
    comparisons = {
        measure: tuple(compare(measure, result.reference, tables, study.failed))
        for measure, tables in study.tables.items()
        if result.reference in {**tables, **study.failed}
    }
    with_goal = comparisons.get(result.goal, ())
    ranking = order(goal, list(study.failed))
    best = may_be_best(goal, ranking[0], with_goal) if goal else []
    sign = 1 if better == "higher" else -1
    return StudyVerdict(
        goal=result.goal,
        better=better,
        reference=result.reference,
        sides={name: measured(name, study.tables) for name in sides if name not in study.failed},
        failed=study.failed,
        comparisons=comparisons,
        ranking=tuple(ranking),
        may_be_best=tuple(best),
        fronts=fronts(sides, {name: sign * table.value for name, table in goal.items()}),
        tradeoffs=tuple(tradeoffs(result, study.tables, combine)),
        sentences=sentences(
            result, goal, ranking, best, with_goal, study.tables.get(FORGOTTEN, {})
        ),
        notices=(*notices, *study.notices),
    )


def combines_of(result: StudyResult) -> tuple[dict[str, Combine], list[str]]:
    """What the tasks of a study's corpus measures combine their statistics with, and notices."""
    combines, notices = {}, []
    finals = [final for side in result.sides for final in side.finals]
    names = dict.fromkeys(n for f in finals for n, scores in f.scores.items() if scores.statistics)
    for name in names:
        try:
            combines[name] = Task.named(name)().combine
        except LoricaError as error:
            notices.append(f"{name} has no intervals: {error.what}")
    return combines, notices


def measured(name: str, tables: Mapping[str, Mapping[str, Table]]) -> dict[str, SideMeasure]:
    """The measures of one side."""
    return {
        measure: side_measure(by_side[name])
        for measure, by_side in tables.items()
        if name in by_side
    }


def side_measure(table: Table) -> SideMeasure:
    values = [float(value) for value in table.values]
    return SideMeasure(
        better=table.better,
        figure=figure_of(table, variance_of(table)),
        by_seed=dict(zip(table.seeds, values, strict=True)),
        spread=float(table.values.std(ddof=1)) if len(values) > 1 else None,
    )


def tradeoffs(
    result: StudyResult,
    tables: Mapping[str, Mapping[str, Table]],
    combine: Mapping[str, Combine],
) -> Iterator[Tradeoff]:
    """Learned against forgotten, of the sides that have both."""
    base = result.base.get(result.goal)
    for name, forgotten in tables.get(FORGOTTEN, {}).items():
        if base is None or name not in tables[result.goal]:
            continue
        with suppress(ValueError):
            gain = learned(tables[result.goal][name], base, result.goal, combine)
            yield Tradeoff(
                name,
                figure_of(gain, variance_of(gain)),
                figure_of(forgotten, variance_of(forgotten)),
            )
