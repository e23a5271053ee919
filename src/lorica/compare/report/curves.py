"""Learning curves and rate-sensitivity curves of a study, as panels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lorica.compare.report.panels import Line, Panel, Spread
from lorica.compare.report.series import Series, rank_label
from lorica.compare.results import SideResult, Trial

Curve = Sequence[tuple[int, float]]


class Window(NamedTuple):
    """Steps that one point of a thinned curve stands for: first <= step <= last."""

    first: int
    last: int


def windows(curves: Sequence[Curve], most: int) -> list[Window]:
    """At most `most` windows of equal length that hold all steps of all curves."""
    steps = sorted({step for curve in curves for step, _ in curve})
    if not steps:
        return []
    size = math.ceil(len(steps) / most)
    return [
        Window(part[0], part[-1])
        for part in (steps[n : n + size] for n in range(0, len(steps), size))
    ]


def spread_over_seeds(curves: Sequence[Curve], parts: Sequence[Window]) -> list[Spread]:
    """One point for each window: the mean of each seed in it, then mean and extremes over seeds."""
    points = []
    for part in parts:
        means = []
        for curve in curves:
            inside = [v for s, v in curve if part.first <= s <= part.last and math.isfinite(v)]
            means += [sum(inside) / len(inside)] if inside else []
        if means:
            middle = (part.first + part.last) / 2
            points.append(Spread(middle, sum(means) / len(means), min(means), max(means)))
    return points


def curve_panels(series: Sequence[Series], kind: str, most: int) -> tuple[list[Panel], int]:
    """(panels, steps that a point stands for). kind: "curve" or "validation" of a final run."""
    curves = [
        getattr(final, kind) for group in series for side in group.sides for final in side.finals
    ]
    parts = windows(curves, most)
    panels = []
    for group in series:
        lines = []
        for number, side in enumerate(group.sides):
            points = spread_over_seeds([getattr(f, kind) for f in side.finals], parts)
            if points:
                lines.append(Line(rank_label(side), _dash(number, group), points))
        if lines:
            panels.append(Panel(group.name, group.number, lines))
    return panels, parts[0].last - parts[0].first + 1 if parts else 1


def rate_panels(series: Sequence[Series]) -> list[Panel]:
    """The losses of the first rung, where all rates are, over the rates."""
    panels = []
    for group in series:
        lines = []
        for number, side in enumerate(group.sides):
            trials = first_rung(side.trials)
            points = [
                Spread(t.learning_rate, t.loss, t.loss, t.loss)
                for t in trials
                if t.loss is not None and math.isfinite(t.loss)
            ]
            diverged = [t.learning_rate for t in side.trials if t.loss is None]
            if points or diverged:
                chosen = side.finals[0].learning_rate if side.finals else None
                dashes = _dash(number, group)
                line = Line(rank_label(side), dashes, points, diverged, chosen, has_markers=True)
                lines.append(line)
        if lines:
            panels.append(Panel(group.name, group.number, lines))
    return panels


def first_rung(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of fewest steps, by rate."""
    fewest = min((trial.steps for trial in trials), default=0)
    return sorted((t for t in trials if t.steps == fewest), key=lambda t: t.learning_rate)


def summary_of(side: SideResult, kind: str) -> tuple[float, float, float] | None:
    """First, lowest and last value of a curve, each the mean over seeds; None without one."""
    curves = [[v for _, v in getattr(f, kind) if math.isfinite(v)] for f in side.finals]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    count = len(curves)
    return (
        sum(curve[0] for curve in curves) / count,
        sum(min(curve) for curve in curves) / count,
        sum(curve[-1] for curve in curves) / count,
    )


def _dash(number: int, group: Series) -> int:
    """The highest rank is solid, lower ones have shorter dashes."""
    return len(group.sides) - 1 - number
