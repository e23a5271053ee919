"""The loss of one run: every step, thinned, and the evaluations on held-out rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorica.compare.report.charts import NARROW, WIDE, Chart, CurveSection, Panels, Plain
from lorica.compare.report.curves import windows
from lorica.compare.report.numbers import decimals_of, written
from lorica.compare.report.panels import Line, Panel, Spread, axes_of, draw_panel
from lorica.training.run import by_step


def loss_curve(events: Sequence[Mapping[str, Any]], most: int) -> CurveSection | None:
    """most: points of the training loss. None: nothing was logged."""
    training = [*zip(*by_step([*map(dict, events)], "step", "loss"), strict=True)]
    held_out = [*zip(*by_step([*map(dict, events)], "eval", "loss"), strict=True)]
    training, held_out = ([(s, v) for s, v in c if math.isfinite(v)] for c in (training, held_out))
    parts = windows([training], most)
    points = []
    for part in parts:
        inside = [v for step, v in training if part.first <= step <= part.last]
        middle = (part.first + part.last) / 2
        points.append(Spread(middle, sum(inside) / len(inside), min(inside), max(inside)))
    lines = [Line("training", 0, points)] if points else []
    if held_out:
        points = [Spread(s, v, v, v) for s, v in held_out]
        line = Line("held out", 1, points, series=1, has_markers=True, is_joined=False)
        lines.append(line)
    if not lines:
        return None
    panel, drawings = Panel("Loss", 0, lines), []
    for size, kind in ((WIDE, "chart wide"), (NARROW, "chart narrow")):
        axes = axes_of([panel], "step", "loss, nats per label token", size=size)
        drawings.append(draw_panel(panel, axes, "Loss over the steps; numbers below.", kind))
    window = parts[0].last - parts[0].first + 1 if parts else 1
    note = ""
    if window > 1:
        note = f"Training: mean over {window} steps; band: lowest and highest step of these."
    return CurveSection("Loss", note, Panels([Chart("", drawings)], _numbers(lines)))


def _numbers(lines: Sequence[Line]) -> Plain:
    """The training loss at ten places, and every evaluation up to ten."""
    rows = [(line.label, point.x, point.y) for line in lines for point in _some(line.points)]
    decimals = min(4, decimals_of([loss for _, _, loss in rows], 3))
    texts = [(name, f"{step:,.0f}", written(loss, decimals)) for name, step, loss in rows]
    return Plain(("loss", "step", "nats per label token"), texts)


def _some(points: Sequence[Spread], most: int = 10) -> Sequence[Spread]:
    """At most `most` of the points, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]
