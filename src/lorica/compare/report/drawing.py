"""SVG, written by hand: elements with escaped text. Colors come from the classes of the style."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from lorica.compare.report.scale import Scale
from lorica.compare.report.text import visible

SERIES = 8
"""Colors, shapes and dashes before they repeat; shapes shift by one each time round."""
SHAPES = (
    (0, 0, 4.6, 0.0),  # circle
    (4, 45, 5.8, 0.0),  # square
    (3, -90, 6.0, 0.0),
    (4, 0, 6.0, 0.0),  # diamond
    (3, 90, 6.0, 0.0),
    (5, -90, 6.8, 0.45),  # star
    (6, 0, 5.4, 0.0),
    (4, 0, 6.8, 0.35),
)
"""(corners, degrees of the first one, radius, radius between corners as a share; 0: none)."""
Point = tuple[float, float]


class Drawing:
    """A drawing of `width` x `height` units, one CSS pixel each at its natural size."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.parts: list[str] = []

    def add(self, tag: str, text: str = "", tip: str = "", **attributes: object) -> None:
        """An element. `kind` is its class; tip: what a pointer over it shows."""
        names = {"kind": "class"}
        written = "".join(
            f' {names.get(key, key.replace("_", "-"))}="{escape(_plain(value))}"'
            for key, value in attributes.items()
        )
        tip_element = Markup("<title>{}</title>").format(visible(tip)) if tip else ""
        inside = escape(visible(text)) + tip_element
        self.parts.append(f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.add("path", d=f"M{_plain(x1)} {_plain(y1)}L{_plain(x2)} {_plain(y2)}", kind=kind)

    def path(self, points: Sequence[Point], kind: str) -> None:
        """A line through `points`."""
        self.add("path", d=_through(points), kind=kind)

    def area(self, points: Sequence[Point], kind: str) -> None:
        self.add("path", d=_through(points) + "Z", kind=kind)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.add("text", text, x=x, y=y, kind=kind or "t", text_anchor=anchor)

    def marker(self, x: float, y: float, series: int, kind: str, tip: str = "") -> None:
        """The shape of a series, about 10 units wide, in its color."""
        self.add("path", d=_shape(x, y, series), kind=f"{kind} {color(series)}", tip=tip)

    def markup(self, label: str, kind: str) -> Markup:
        """The drawing. label: its text alternative."""
        size = f"{_plain(self.width)} {_plain(self.height)}"
        start = Markup('<svg viewBox="0 0 {}" role="img" aria-label="{}" class="{}">')
        return start.format(size, visible(label), kind) + Markup("".join(self.parts) + "</svg>")

    def decoration(self, kind: str) -> Markup:
        """The drawing where text beside it says the same."""
        size = f"{_plain(self.width)} {_plain(self.height)}"
        start = Markup('<svg viewBox="0 0 {}" aria-hidden="true" class="{}">').format(size, kind)
        return start + Markup("".join(self.parts) + "</svg>")


def color(series: int) -> str:
    """The class that holds the color of a series."""
    return f"s{series % SERIES}"


def dash(number: int) -> str:
    """The class that holds the dashes of the line with this number."""
    return f"d{number % 4}"


def swatch(series: int) -> Markup:
    """The marker of a series, beside its name."""
    drawing = Drawing(14, 14)
    drawing.marker(7, 7, series, "on")
    return drawing.decoration("swatch")


def draw_axes(drawing: Drawing, x: Scale, y: Scale, x_title: str, y_title: str) -> None:
    """Rules at the ticks of y, ticks of x, labels, and titles: that of y stands on top."""
    for value, label in y.ticks:
        drawing.line(x.start, y(value), x.end, y(value), "grid")
        drawing.text(x.start - 6, y(value) + 4, label, anchor="end")
    bottom = y.start
    drawing.line(x.start, bottom, x.end, bottom, "axis")
    for value, label in x.ticks:
        drawing.line(x(value), bottom, x(value), bottom + 4, "axis")
        drawing.text(x(value), bottom + 17, label, anchor="middle")
    drawing.text(x.end, bottom + 33, x_title + ", log scale" * x.is_log, "title", "end")
    drawing.text(2, 13, y_title + ", log scale" * y.is_log, "title")


def _shape(x: float, y: float, series: int) -> str:
    sides, first, radius, inner = SHAPES[(series + series // SERIES) % SERIES]
    if not sides:
        r, across = _plain(radius), _plain(2 * radius)
        return (
            f"M{_plain(x - radius)} {_plain(y)}a{r} {r} 0 1 0 {across} 0a{r} {r} 0 1 0 -{across} 0Z"
        )
    corners = []
    for corner in range(2 * sides if inner else sides):
        angle = math.radians(first + corner * 360 / (2 * sides if inner else sides))
        length = radius * inner if inner and corner % 2 else radius
        corners.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    return _through(corners) + "Z"


def _through(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points)


def _plain(value: object) -> str:
    """A number with one decimal at most."""
    match value:
        case float():
            return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")
    return str(value)
