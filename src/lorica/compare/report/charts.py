"""The charts of a study, each with its text alternative, and the tables of their numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from lorica.compare.fronts import cost_of
from lorica.compare.intervals import Figure
from lorica.compare.report.curves import curve_panels, rate_panels, summary_of
from lorica.compare.report.drawing import swatch
from lorica.compare.report.numbers import (
    BYTES,
    SECONDS,
    compact,
    decimals_of,
    unit_of,
    written,
)
from lorica.compare.report.panels import Axes, Panel, axes_of, draw_panel
from lorica.compare.report.scatter import Axis, Bar, Dot, draw_scatter
from lorica.compare.report.series import Series, rank_label
from lorica.compare.report.table import between, figure_decimals, figures_of, is_better, words
from lorica.compare.report.text import visible_name
from lorica.compare.results import StudyResult
from lorica.compare.verdict import StudyVerdict

WIDE, NARROW, SMALL = (900.0, 400.0), (340.0, 320.0), (340.0, 250.0)


@dataclass(frozen=True)
class Plain:
    """A small table: its head, and rows whose first cell is their head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """drawings: one, or the same for a wide and for a narrow window. swatch: beside the title.
    text, numbers: below it."""

    title: str
    drawings: Sequence[Markup]
    swatch: Markup = field(default_factory=Markup)
    text: str = ""
    numbers: Plain | None = None


@dataclass(frozen=True)
class Panels:
    charts: Sequence[Chart]
    numbers: Plain


@dataclass(frozen=True)
class CurveSection:
    title: str
    note: str
    panels: Panels


def forgetting_chart(
    result: StudyResult, verdict: StudyVerdict, series: Sequence[Series]
) -> Chart | None:
    """What each side learned against what it forgot; None if either was not measured."""
    tradeoffs = {tradeoff.side: tradeoff for tradeoff in verdict.tradeoffs}
    dots, names = [], []
    for group in series:
        for side in group.sides:
            if (tradeoff := tradeoffs.get(side.name)) is not None:
                x, y = bar_of(tradeoff.forgotten), bar_of(tradeoff.learned)
                names.append(side.name)
                tip = f"{visible_name(side.name)}: learned {y.value:.3g}, forgot {x.value:.3g}"
                dots.append(Dot(group.number, rank_label(side), tip, x, y))
    if not dots:
        return None
    gain = "reduction" if verdict.better == "lower" else "gain"
    gains = [dot.y.value for dot in dots]
    has_base = min(gains) <= 0.6 * max(gains)  # else the base, far away, would squeeze the sides
    axes = (
        Axis("forgotten: rise of the loss on earlier text", (0.0,), is_log=False),
        Axis(
            f"learned: {gain} of {words(result.goal)} on test rows", (0.0,) * has_base, is_log=False
        ),
    )
    text = "; ".join(dot.tip for dot in dots)
    drawings = [
        draw_scatter(
            dots,
            *axes,
            size=size,
            label=f"Learned against forgotten. {text}.",
            zero="base" if has_base else "",
            kind=kind,
        )
        for size, kind in ((WIDE, "chart wide"), (NARROW, "chart narrow"))
    ]
    learned = {name: t.learned for name, t in tradeoffs.items()}
    forgotten = {name: t.forgotten for name, t in tradeoffs.items()}
    columns = [_column(figures, names) for figures in (learned, forgotten)]
    rows = [*zip(map(visible_name, names), *columns, strict=True)]
    numbers = Plain(("side", "learned", "forgotten"), rows)
    return Chart("Learned against forgotten", drawings, numbers=numbers)


def _column(figures: Mapping[str, Figure], names: Sequence[str]) -> list[str]:
    """The figures with their intervals over rows and seeds, with the same digits."""
    decimals = figure_decimals(figures.values())
    return [
        f"{written(f.value, decimals, signed=True)} {between(f.over_both, decimals, signed=True)}"
        for f in (figures[name] for name in names)
    ]


def bar_of(figure: Figure) -> Bar:
    """A figure with its interval over seeds: rows are the same for all, and vary all alike."""
    low, high = figure.over_seeds.low, figure.over_seeds.high
    if math.isnan(low) or math.isnan(high):
        low = high = figure.value
    return Bar(figure.value, low, high)


def front_charts(
    result: StudyResult, verdict: StudyVerdict, series: Sequence[Series]
) -> list[Chart]:
    """The goal against time, memory and size, each with its Pareto front."""
    costs = [side.cost for side in result.sides if side.cost is not None]
    seconds = unit_of([c.seconds_per_step for c in costs], SECONDS)
    memory = unit_of([c.peak_memory_bytes for c in costs if c.peak_memory_bytes], BYTES)
    file = unit_of([c.adapter_bytes for c in costs], BYTES)
    figures = (
        ("time", "Time", f"{seconds.name} per step", seconds.size),
        ("memory", "Memory", f"peak memory, {memory.name}", memory.size),
        ("file size", "Size", f"adapter file, {file.name}", file.size),
    )
    charts = []
    for what, title, x_title, size in figures:
        chart = _front_chart(result, verdict, series, what, x_title, size)
        charts += [Chart(title, *chart)] if chart else []
    return charts


def _front_chart(
    result: StudyResult,
    verdict: StudyVerdict,
    series: Sequence[Series],
    what: str,
    x_title: str,
    size: float,
) -> tuple[list[Markup], Markup, str] | None:
    goal = figures_of(verdict, result.goal)
    dots: dict[str, Dot] = {}
    for group in series:
        for side in group.sides:
            cost = cost_of(side.cost, what) if side.cost else None
            if cost is None or side.name not in goal:
                continue
            x, y = cost / size, bar_of(goal[side.name])
            tip = f"{visible_name(side.name)}: {compact(x)} {x_title}, {y.value:.4g}"
            dots[side.name] = Dot(group.number, rank_label(side), tip, Bar(x, x, x), y)
    if not dots:
        return None
    names = list(dots)
    front = [names.index(name) for name in verdict.fronts[what] if name in dots]
    text = "On the front, cheapest first: " + ", ".join(visible_name(names[i]) for i in front) + "."
    drawing = draw_scatter(
        list(dots.values()),
        Axis(x_title),
        Axis(f"{words(result.goal)}, {is_better(verdict.better)}"),
        size=SMALL,
        front=front,
        label=f"{words(result.goal)} against {x_title}. {text}",
    )
    return [drawing], Markup(), text


def curve_section(series: Sequence[Series], kind: str, most: int) -> CurveSection | None:
    """kind: "curve" (training loss) or "validation". None: nothing, or single points alone."""
    panels, window = curve_panels(series, kind, most)
    if not any(len(line.points) > 1 for panel in panels for line in panel.lines):
        return None
    title = "training loss" if kind == "curve" else "validation loss"
    rows = [
        (side, summary) for g in series for side in g.sides if (summary := summary_of(side, kind))
    ]
    decimals = min(4, decimals_of([v for _, summary in rows for v in summary], 3))
    numbers = Plain(
        ("side", "first", "lowest", "last"),
        [(visible_name(s.name), *(written(v, decimals) for v in values)) for s, values in rows],
    )
    axes = axes_of(panels, "step", title, cut=True)
    note = "Line: mean over seeds. Band: lowest to highest seed. Number at the end: rank."
    if window > 1:
        note += f" Each point is the mean over {window} steps."
    if axes.top is not None:
        note += " The first steps lie above the axis, which is cut."
    return CurveSection(title.capitalize(), note, Panels(_charts(panels, axes), numbers))


def rate_charts(series: Sequence[Series]) -> Panels | None:
    """The loss over the learning rate; None if no rate was searched."""
    panels = rate_panels(series)
    if not panels:
        return None
    trials = [(side, t) for g in series for side in g.sides for t in side.trials]
    decimals = min(4, decimals_of([t.loss for _, t in trials if t.loss is not None], 3))
    numbers = Plain(
        ("side", "rate", "steps", "validation loss"),
        [
            (
                visible_name(side.name),
                compact(t.learning_rate),
                f"{t.steps:,}",
                "diverged" if t.loss is None else written(t.loss, decimals),
            )
            for side, t in sorted(trials, key=lambda p: (p[1].steps, p[1].learning_rate))
        ],
    )
    axes = axes_of(panels, "learning rate", "validation loss", log_x=True)
    return Panels(_charts(panels, axes), numbers)


def _charts(panels: Sequence[Panel], axes: Axes) -> list[Chart]:
    text = f"{axes.y_title} over {axes.x_title}; numbers below."
    return [
        Chart(p.title, [draw_panel(p, axes, f"{p.title}: {text}", "chart")], swatch(p.series))
        for p in panels
    ]
