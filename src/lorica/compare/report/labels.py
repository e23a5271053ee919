"""Labels beside points, so that none covers a marker, an error bar or another label."""

from collections.abc import Sequence
from typing import NamedTuple

from lorica.compare.report.drawing import Drawing, Point, color
from lorica.compare.report.scale import CHARACTER

HEIGHT, NEAR, FAR = 12.0, 9.0, 20.0
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def place_labels(
    drawing: Drawing, points: Sequence[tuple[Point, str, int]], taken: Sequence[Box], frame: Box
) -> None:
    """Draw the label of each point where it covers least, with a thin line to it if it is far.

    points: with the label and the number of the series. taken: boxes that labels keep off.
    frame: labels stay inside.
    """
    boxes = list(taken)
    for point, text, series in points:
        if not text:
            continue
        width = len(text) * CHARACTER
        candidates = [
            (_box(point, direction, distance, width), distance)
            for distance in (NEAR, FAR, 2 * FAR)
            for direction in DIRECTIONS
        ]
        costs = [_cost(box, boxes, frame) + distance / 10 for box, distance in candidates]
        best, distance = candidates[costs.index(min(costs))]
        boxes.append(best)
        if distance > NEAR:
            x, y = point
            nearest = min(max(x, best.left), best.right), min(max(y, best.top), best.bottom)
            drawing.line(x, y, *nearest, "leader")
        drawing.text(
            (best.left + best.right) / 2, best.bottom - 2.5, text, f"t {color(series)}", "middle"
        )


def _box(point: Point, direction: tuple[int, int], distance: float, width: float) -> Box:
    """The box of a label in this direction of its point."""
    x = point[0] + direction[0] * (distance + width / 2)
    y = point[1] + direction[1] * (distance + HEIGHT / 4)
    return Box(x - width / 2, y - HEIGHT / 2, x + width / 2, y + HEIGHT / 2)


def _cost(box: Box, others: Sequence[Box], frame: Box) -> float:
    """The area of others that a label covers; outside the frame counts ten times."""
    area = (box.right - box.left) * (box.bottom - box.top)
    return 10 * (area - box.overlap(frame)) + sum(box.overlap(other) for other in others)
