"""The sections as bars, and the scaling as lines."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.sections import SECTIONS

OURS, OTHERS, BASE = "#1f5fa8", "#c9a227", "#9a9a9a"


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each section, its height that of its bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(results.values())
    heights = [1.0 + 0.3 * (6 if p["section"] == "scaling" else len(p["sides"])) for p in panels]
    figure = Figure(figsize=(8, sum(heights)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for (row,), found in zip(rows, panels, strict=True):
        row.suptitle(figures.title(found), fontsize=11, fontweight="bold")
        (lines if found["section"] == "scaling" else bars)(row, found)
    figure.savefig(path)


def bars(panel: Any, found: dict[str, Any]) -> None:
    """The median ratio of every side to the first of those it is measured against; its range."""
    about, sides = SECTIONS[found["section"]], found["sides"]
    title, by = next(iter(figures.columns(about, list(sides)).items()))
    axes = panel.subplots()
    for y, (name, one) in enumerate(sides.items()):
        ratios = figures.ratios(one, sides[by[name]], is_time=about.is_time)
        middle = statistics.median(ratios)
        axes.barh(y, middle, color=colour(one["kind"]), height=0.7)
        axes.plot([min(ratios), max(ratios)], [y, y], color="black", linewidth=1)
        axes.text(max(ratios), y, f"  {middle:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(sides)), list(sides), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    better = "lower" if about.is_time else "higher"
    axes.set_xlabel(f"{title} ({better} is better)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def lines(panel: Any, found: dict[str, Any]) -> None:
    """Seconds of a step at each size, and the least-squares line."""
    curves = figures.curves(found["sides"])
    for axes, (kind, curve) in zip(
        panel.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        x, y = curve["size"], curve["seconds"]
        slope, start = statistics.linear_regression(x, y)
        ends = [0, max(x)]
        axes.plot(ends, [start + slope * end for end in ends], color=BASE, linewidth=1)
        axes.plot(x, y, "o", color=OURS, clip_on=False)
        axes.set_xlabel("tokens in the batch" if kind == "rows" else kind, fontsize=9)
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panel.axes[0].set_ylabel("seconds per step", fontsize=9)


def colour(kind: str) -> str:
    if kind.startswith("lorica"):
        return OURS
    return BASE if kind in ("floor", "full") else OTHERS
