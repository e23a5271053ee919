"""Small multiples: one panel for each series, a line for each rank, all on the same axes."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorica.compare.report.drawing import Drawing, Point, color, dash, draw_axes
from lorica.compare.report.numbers import compact
from lorica.compare.report.scale import CHARACTER, Scale, scale

WIDTH, HEIGHT = 340.0, 220.0
TOP, BOTTOM = 26.0, 40.0
MIN_POINTS = 4
"""Of a line after its start, for an axis that leaves the start out."""
DIVERGED = 26.0
"""Height of the strip of runs that diverged."""


@dataclass(frozen=True)
class Spread:
    """A point of a line: y with its lowest and highest value over the seeds."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """label: stands at its end. number: decides the dashes. diverged: x of trials without a value.
    chosen: x of the point that is ringed. series: in its color; None: that of the panel.
    is_joined: by a line; else its points stand alone, and need markers."""

    label: str
    number: int
    points: Sequence[Spread]
    diverged: Sequence[float] = ()
    chosen: float | None = None
    series: int | None = None
    has_markers: bool = False
    is_joined: bool = True


@dataclass(frozen=True)
class Panel:
    title: str
    series: int
    lines: Sequence[Line]


@dataclass(frozen=True)
class Axes:
    """top: the number at which y is cut, below the start of the curves; None: all is on it."""

    x: Scale
    y: Scale
    x_title: str
    y_title: str
    has_diverged: bool
    size: Point
    top: float | None = None


def axes_of(
    panels: Sequence[Panel],
    x_title: str,
    y_title: str,
    *,
    log_x: bool = False,
    cut: bool = False,
    size: Point = (WIDTH, HEIGHT),
) -> Axes:
    """The axes that all panels share. cut: leave out what is far above the later part."""
    lines = [line for panel in panels for line in panel.lines]
    points = [point for line in lines for point in line.points]
    has_diverged = any(line.diverged for line in lines)
    limit = _limit(lines) if cut else None
    values = [v for p in points for v in (p.low, p.high) if limit is None or v <= limit]
    include = () if limit is None else (limit,)
    y = scale(
        values,
        size[1] - BOTTOM,
        TOP + (DIVERGED if has_diverged else 0),
        include=include,
        is_log=None if limit is None else False,
        label_size=20,
    )
    longest = max((len(text) for _, text in y.ticks), default=1)
    left = 14 + max(longest, len("diverged") if has_diverged else 0) * CHARACTER
    label = max((len(line.label) for line in lines), default=0)
    xs = [p.x for p in points] + [x for line in lines for x in line.diverged]
    x = scale(xs, left, size[0] - 14 - label * CHARACTER, is_log=log_x)
    return Axes(x, y, x_title, y_title, has_diverged, size, limit)


def _limit(lines: Sequence[Line]) -> float | None:
    """The highest value after the first fifth, if the start is more than twice as high, and every
    line has points enough after it."""
    last = max((p.x for line in lines for p in line.points), default=0)
    later = [[p.high for p in line.points if p.x >= last / 5] for line in lines if line.points]
    if not later or min(map(len, later)) < MIN_POINTS:
        return None
    limit = max(max(values) for values in later)
    highest = max(p.high for line in lines for p in line.points)
    return limit if limit > 0 and highest > 2 * limit else None


def draw_panel(panel: Panel, axes: Axes, label: str, kind: str) -> Markup:
    """label: text alternative."""
    drawing = Drawing(*axes.size)
    x, y = axes.x, axes.y
    draw_axes(drawing, x, y, axes.x_title, axes.y_title)
    for line in panel.lines:
        _draw_band(drawing, line, _series(line, panel), x, y)
    for line in panel.lines:
        points = cut_above([(x(p.x), y(p.y)) for p in line.points], y.end)
        if line.is_joined and len(points) > 1:
            drawing.path(points, f"curve {color(_series(line, panel))} {dash(line.number)}")
        if line.has_markers:
            _draw_markers(drawing, line, _series(line, panel), x, y)
    if axes.has_diverged:
        _draw_diverged(drawing, panel, x)
    _draw_end_labels(drawing, panel, x, y)
    return drawing.markup(label, kind)


def _series(line: Line, panel: Panel) -> int:
    return panel.series if line.series is None else line.series


def cut_above(points: Sequence[Point], top: float) -> list[Point]:
    """The part of a line from where it last comes below `top` (larger y is lower)."""
    above = [n for n, (_, place) in enumerate(points) if place < top - 1e-9]
    if not above or above[-1] + 1 == len(points):
        return [] if above else list(points)
    (x0, y0), (x1, y1) = points[above[-1]], points[above[-1] + 1]
    entry = x0 + (top - y0) / (y1 - y0) * (x1 - x0)
    return [(entry, top), *points[above[-1] + 1 :]]


def _draw_band(drawing: Drawing, line: Line, series: int, x: Scale, y: Scale) -> None:
    upper = cut_above([(x(p.x), y(p.high)) for p in line.points], y.end)
    lower = cut_above([(x(p.x), y(p.low)) for p in line.points], y.end)
    if len(upper) > 1 and any(p.high > p.low for p in line.points):
        drawing.area([*upper, *lower[::-1]], f"band {color(series)}")


def _draw_markers(drawing: Drawing, line: Line, series: int, x: Scale, y: Scale) -> None:
    for point in line.points:
        if point.x == line.chosen:
            drawing.add("circle", cx=x(point.x), cy=y(point.y), r=8.0, kind="ring")
    for point in line.points:
        tip = f"{line.label} {compact(point.x)}: {point.y:.4g}".strip()
        drawing.marker(x(point.x), y(point.y), series, "on", tip)


def _draw_diverged(drawing: Drawing, panel: Panel, x: Scale) -> None:
    """A cross for each rate at which a run diverged, with the ranks."""
    height = TOP + DIVERGED / 2 - 6
    drawing.text(x.start - 6, height + 4, "diverged", "t quiet-t", "end")
    for rate in sorted({rate for line in panel.lines for rate in line.diverged}):
        labels = [line.label for line in panel.lines if rate in line.diverged and line.label]
        cross = f"M{x(rate) - 4:.1f} {height - 4:.1f}l8 8m0 -8l-8 8"
        tip = f"diverged at {compact(rate)}"
        drawing.add("path", d=cross, kind=f"cross {color(panel.series)}", tip=tip)
        text = ", ".join(labels)
        at_right = x(rate) + 8 + len(text) * CHARACTER < drawing.width
        place = x(rate) + (8 if at_right else -8)
        drawing.text(place, height + 4, text, anchor="start" if at_right else "end")


def _draw_end_labels(drawing: Drawing, panel: Panel, x: Scale, y: Scale) -> None:
    """The label of each line at its end, pushed apart where ends are close."""
    ends = sorted(
        (y(line.points[-1].y), x(line.points[-1].x), line.label)
        for line in panel.lines
        if line.points and line.label
    )
    heights = spread_out([end[0] for end in ends], 13.0, y.end, y.start - 4)
    right = max((end[1] for end in ends), default=0.0)
    for (_, place, label), height in zip(ends, heights, strict=True):
        drawing.text((right if right - place < 30 else place) + 9, height + 4, label)


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved to be `gap` apart, around where they are, within low and high."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    if moved:  # half of the way back: labels stand on both sides of lines that end together
        back = max(0.0, (moved[-1] - places[-1]) / 2, moved[-1] - high)
        moved = [max(low + n * gap, place - back) for n, place in enumerate(moved)]
    return moved
