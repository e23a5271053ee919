"""The table of all sides: quality with both intervals, difference, forgetting and costs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from lorica.compare.intervals import Figure
from lorica.compare.pairs import Comparison
from lorica.compare.report.drawing import Drawing
from lorica.compare.report.numbers import (
    BYTES,
    NONE,
    SECONDS,
    decimals_of,
    unit_of,
    written,
    written_rates,
)
from lorica.compare.report.scale import Scale, scale
from lorica.compare.report.text import visible_name
from lorica.compare.results import Cost, StudyResult
from lorica.compare.study_tables import FORGOTTEN
from lorica.compare.verdict import StudyVerdict
from lorica.evaluation.stats import Interval

BAR_WIDTH, LINE = 96.0, 16.7
"""Of the drawing of an interval: its width, and the height of a line of the cell beside it."""


@dataclass(frozen=True)
class Column:
    title: str
    unit: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """sort: what the column is sorted by; None: always last. lines: small, below the text.
    drawing: beside them. kind: its class."""

    text: str
    sort: float | str | None = None
    lines: Sequence[str] = ()
    drawing: Markup | None = None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    series: int
    cells: Sequence[Cell]
    is_reference: bool = False


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Row]
    foot: Sequence[str] = field(default=())


@dataclass(frozen=True)
class _Study:
    """figures: of the goal, by side. comparisons: with the reference, by side."""

    result: StudyResult
    verdict: StudyVerdict
    figures: dict[str, Figure]
    comparisons: dict[str, Comparison]


Built = Iterable[tuple[Column, list[Cell]]]


def study_table(result: StudyResult, verdict: StudyVerdict, series: dict[str, int]) -> Table:
    """The sides, the best one first. series: the number of each side's series."""
    figures = figures_of(verdict, result.goal)
    comparisons = {c.side: c for c in verdict.comparisons.get(result.goal, ())}
    study = _Study(result, verdict, figures, comparisons)
    columns, cells = [], []
    for build in (_rates, _goals, _differences, _verdicts, _forgetting, _costs):
        for column, entries in build(study):
            columns.append(column)
            cells.append(entries)
    rows = {
        side.name: Row(
            visible_name(side.name),
            series[side.name],
            [entries[n] for entries in cells],
            side.name == result.reference,
        )
        for n, side in enumerate(result.sides)
    }
    order = [name for name in verdict.ranking if name in rows]
    order += [name for name in rows if name not in order]
    head = [Column("Side", is_text=True), *columns]
    return Table(head, [rows[name] for name in order], _foot(study, len(head)))


def figures_of(verdict: StudyVerdict, measure: str) -> dict[str, Figure]:
    """The figure of each side on a measure."""
    return {
        name: measures[measure].figure
        for name, measures in verdict.sides.items()
        if measure in measures
    }


def figure_decimals(figures: Iterable[Figure]) -> int:
    """Decimals for two digits of the usual half of an interval; without intervals, three of the
    values."""
    figures = list(figures)
    intervals = [i for f in figures for i in (f.over_rows, f.over_seeds)]
    halves = sorted((i.high - i.low) / 2 for i in intervals if i.high > i.low)
    if halves:
        return min(4, decimals_of([halves[len(halves) // 2]]))
    return min(4, decimals_of([f.value for f in figures], 3))


def between(interval: Interval, decimals: int, *, signed: bool = False) -> str:
    if math.isnan(interval.low) or math.isnan(interval.high):
        return NONE
    low, high = (written(v, decimals, signed=signed) for v in (interval.low, interval.high))
    return f"[{low}, {high}]"


def words(name: str) -> str:
    """The name of a measure, as a reader says it."""
    return name.replace("_", " ")


def is_better(better: str) -> str:
    return f"{better} is better"


def _rates(study: _Study) -> Built:
    rates = [side.finals[0].learning_rate if side.finals else None for side in study.result.sides]
    texts = written_rates(rates)
    yield Column("Rate"), [Cell(t, r) for t, r in zip(texts, rates, strict=True)]


def _goals(study: _Study) -> Built:
    decimals = figure_decimals(study.figures.values())
    cells = []
    for side in study.result.sides:
        figure = study.figures.get(side.name)
        if figure is None:
            cells.append(Cell(NONE))
            continue
        lines = _lines(figure, decimals, ("rows", "seeds", "both"))
        cells.append(Cell(written(figure.value, decimals), figure.value, lines))
    yield Column(words(study.result.goal), is_better(study.verdict.better)), cells


def _lines(
    figure: Figure, decimals: int, names: Sequence[str], *, signed: bool = False
) -> list[str]:
    intervals = {"rows": figure.over_rows, "seeds": figure.over_seeds, "both": figure.over_both}
    return [f"{name} {between(intervals[name], decimals, signed=signed)}" for name in names]


def _differences(study: _Study) -> Built:
    differences = {c.side: c.difference for c in study.comparisons.values() if c.difference}
    decimals = figure_decimals([*differences.values()])
    intervals = [i for f in differences.values() for i in (f.over_rows, f.over_seeds, f.over_both)]
    ends = [v for i in intervals for v in (i.low, i.high)]
    axis = scale(ends, 2, BAR_WIDTH - 2, is_log=False, include=(0.0,))
    cells = []
    for side in study.result.sides:
        figure = differences.get(side.name)
        if figure is None:
            cells.append(Cell(NONE, None, kind="quiet"))
            continue
        lines = _lines(figure, decimals, ("rows", "seeds", "both"), signed=True)
        text = written(figure.value, decimals, signed=True)
        cells.append(Cell(text, figure.value, lines, _draw_difference(figure, axis)))
    yield Column("Difference", f"to {visible_name(study.result.reference)}"), cells


def _draw_difference(figure: Figure, axis: Scale) -> Markup:
    """The value, and below it a line for each interval, at the heights of their numbers."""
    drawing = Drawing(BAR_WIDTH, 4 * LINE + 5)
    drawing.line(axis(0), 0, axis(0), drawing.height, "zero")
    drawing.add("circle", cx=axis(figure.value), cy=LINE * 0.62, r=3.5, kind="mid")
    kinds = ("span", "span", "span both")
    for n, interval in enumerate((figure.over_rows, figure.over_seeds, figure.over_both)):
        if not math.isnan(interval.low):
            height = LINE * (n + 1.72)
            drawing.line(axis(interval.low), height, axis(interval.high), height, kinds[n])
    return drawing.decoration("interval")


def _verdicts(study: _Study) -> Built:
    cells = []
    for side in study.result.sides:
        comparison = study.comparisons.get(side.name)
        if side.name in study.verdict.failed:
            diverged = bool(side.trials) and all(trial.loss is None for trial in side.trials)
            word = "failed" if side.finals or diverged else "not run"
            cells.append(Cell(word, word, kind="failed" if word == "failed" else "quiet"))
        elif comparison is None:
            is_reference = side.name == study.result.reference
            cells.append(Cell("reference" if is_reference else NONE, None, kind="quiet"))
        else:
            p = comparison.p_holm
            lines = [] if p is None else ["p < 0.001" if p < 0.001 else f"p = {p:.3f}"]
            kind = comparison.verdict if comparison.verdict in ("better", "worse") else "quiet"
            cells.append(Cell(comparison.verdict, comparison.verdict, lines, kind=kind))
    yield Column("Verdict", is_text=True), cells


def _forgetting(study: _Study) -> Built:
    figures = figures_of(study.verdict, FORGOTTEN)
    if not figures:
        return
    decimals = figure_decimals(figures.values())
    cells = []
    for side in study.result.sides:
        if (figure := figures.get(side.name)) is None:
            cells.append(Cell(NONE))
            continue
        lines = _lines(figure, decimals, ("rows", "seeds"), signed=True)
        cells.append(Cell(written(figure.value, decimals, signed=True), figure.value, lines))
    yield Column("Forgotten", "nats per token"), cells


def _costs(study: _Study) -> Built:
    costs = [side.cost for side in study.result.sides]
    known = [cost for cost in costs if cost is not None]
    if not known:
        return
    seconds = unit_of([c.seconds_per_step for c in known], SECONDS)
    memory = unit_of([c.peak_memory_bytes for c in known if c.peak_memory_bytes], BYTES)
    file = unit_of([c.adapter_bytes for c in known], BYTES)
    figures: tuple[tuple[Column, float, int, Callable[[Cost], float | None]], ...] = (
        (Column("Time", f"{seconds.name} per step"), seconds.size, 3, lambda c: c.seconds_per_step),
        (Column("Speed", "tokens per s"), 1.0, 3, lambda c: c.tokens_per_second),
        (Column("Memory", f"peak, {memory.name}"), memory.size, 3, lambda c: c.peak_memory_bytes),
        (Column("File", file.name), file.size, 2, lambda c: c.adapter_bytes),
        (Column("Trained", "parameters"), 1.0, 1, lambda c: c.trained_parameters),
    )
    for column, size, significant, read in figures:
        yield column, _cells(costs, size, significant, read)


def _cells(
    costs: Sequence[Cost | None],
    size: float,
    significant: int,
    read: Callable[[Cost], float | None],
) -> list[Cell]:
    values = [None if cost is None else read(cost) for cost in costs]
    scaled = [None if value is None else value / size for value in values]
    decimals = decimals_of([v for v in scaled if v is not None], significant)
    return [Cell(written(v, decimals), v) for v in scaled]


def _foot(study: _Study, columns: int) -> list[str]:
    """The row of the base without an adapter; [] if it was not measured."""
    base = study.result.base.get(study.result.goal)
    if base is None:
        return []
    value = written(base.value, figure_decimals(study.figures.values()))
    return ["base alone", "", value, *[""] * (columns - 3)]
