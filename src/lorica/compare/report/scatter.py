"""Points with error bars: learned against forgotten, and quality against a cost with its front."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from lorica.compare.report.drawing import Drawing, Point, color, draw_axes
from lorica.compare.report.labels import Box, place_labels
from lorica.compare.report.scale import Scale, scale


@dataclass(frozen=True)
class Bar:
    """A number and its interval; low and high are the number itself where none is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Dot:
    """A side in a scatter. label: its rank, beside it. tip: what a pointer over it shows."""

    series: int
    label: str
    tip: str
    x: Bar
    y: Bar


@dataclass(frozen=True)
class Axis:
    """title: with the unit. include: numbers that are on the axis. better: where the best is."""

    title: str
    include: tuple[float, ...] = ()
    is_log: bool | None = None


def draw_scatter(
    dots: Sequence[Dot],
    x_axis: Axis,
    y_axis: Axis,
    *,
    size: tuple[float, float],
    front: Sequence[int] | None = None,
    label: str,
    zero: str = "",
    kind: str = "chart",
) -> Markup:
    """front: indices of the dots on a Pareto front, which are filled and joined by steps; None: all
    are filled. zero: the name of the point (0, 0), where rules cross. label: text alternative.
    """
    width, height = size
    drawing = Drawing(width, height)
    y_values = [v for d in dots for v in (d.y.low, d.y.high)]
    x_values = [v for d in dots for v in (d.x.low, d.x.high)]
    y = scale(
        y_values, height - 40, 26, include=y_axis.include, is_log=y_axis.is_log, label_size=20
    )
    left = 14 + max((len(text) for _, text in y.ticks), default=1) * 6.6
    x = scale(x_values, left, width - 12, include=x_axis.include, is_log=x_axis.is_log)
    draw_axes(drawing, x, y, x_axis.title, y_axis.title)
    boxes = [
        Box(x(d.x.value) - 6, y(d.y.value) - 6, x(d.x.value) + 6, y(d.y.value) + 6) for d in dots
    ]
    if zero:
        drawing.line(x(0), y.start, x(0), y.end, "zero")
        drawing.line(x.start, y(0), x.end, y(0), "zero")
        at_right = x(0) < width - 60
        drawing.text(
            x(0) + (5 if at_right else -5),
            y(0) - 5,
            zero,
            "t quiet-t",
            "start" if at_right else "end",
        )
        boxes.append(Box(x(0), y(0) - 16, x(0) + len(zero) * 7, y(0)))
    if front:
        stairs = _steps([(x(dots[i].x.value), y(dots[i].y.value)) for i in front])
        drawing.path(stairs, "front")
        boxes += [_between(*ends) for ends in pairwise(stairs)]
    for dot in dots:
        boxes += _draw_bars(drawing, dot, x, y)
    for number, dot in enumerate(dots):
        state = "on" if front is None or number in front else "off"
        drawing.marker(x(dot.x.value), y(dot.y.value), dot.series, state, dot.tip)
    named = [((x(d.x.value), y(d.y.value)), d.label, d.series) for d in dots]
    place_labels(drawing, named, boxes, Box(x.start, y.end, x.end, y.start))
    return drawing.markup(label, kind)


def _draw_bars(drawing: Drawing, dot: Dot, x: Scale, y: Scale) -> list[Box]:
    """The error bars of a dot. Returns the boxes that they take."""
    middle, boxes = (x(dot.x.value), y(dot.y.value)), []
    if dot.x.high > dot.x.low:
        drawing.line(x(dot.x.low), middle[1], x(dot.x.high), middle[1], f"bar {color(dot.series)}")
        boxes.append(Box(x(dot.x.low), middle[1] - 1.5, x(dot.x.high), middle[1] + 1.5))
    if dot.y.high > dot.y.low:
        drawing.line(middle[0], y(dot.y.low), middle[0], y(dot.y.high), f"bar {color(dot.series)}")
        boxes.append(Box(middle[0] - 1.5, y(dot.y.high), middle[0] + 1.5, y(dot.y.low)))
    return boxes


def _between(first: Point, second: Point) -> Box:
    """The box of a rule, level or upright."""
    (x0, y0), (x1, y1) = first, second
    return Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)


def _steps(points: Sequence[Point]) -> list[Point]:
    """Between two points of a front the cheaper one is what can be had: the line goes in steps."""
    stairs = list(points[:1])
    for point in points[1:]:
        stairs += [(point[0], stairs[-1][1]), point]
    return stairs
