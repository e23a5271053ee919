"""The plots of a run: the loss of every step, and the rank in use at every layer."""

import io
from pathlib import Path
from typing import Any

from lorica.core.site_names import block_of
from lorica.formats import commit
from lorica.training.run import by_step, read_events

LOSS, RANKS = "loss.png", "ranks.png"


def plot_loss(folder: Path) -> None:
    """loss.png: the training loss of every step, its smoothed line, and the evaluations."""
    events = read_events(folder)
    steps, losses = by_step(events, "step", "loss")
    eval_steps, held_out = by_step(events, "eval", "loss")
    figure, axes = _page(7, 4)
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.13, top=0.92)
    axes.plot(steps, losses, color="#9ab8d8", linewidth=0.8, label="training, each step")
    axes.plot(steps, _smoothed(losses), color="#1f5fa8", linewidth=1.6, label="training, smoothed")
    if eval_steps:
        axes.plot(eval_steps, held_out, color="#c8501e", marker="o", markersize=4, label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per label token)")
    axes.set_title(folder.name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _write(figure, folder / LOSS)


def plot_ranks(ranks: dict[str, int], path: Path) -> None:
    """The rank in use at every site: a row for each kind of layer, a column for each block."""
    rows = list(dict.fromkeys(name.rpartition(".")[2] for name in ranks))
    blocks = sorted({-1 if (b := block_of(name)) is None else b for name in ranks})
    grid: list[list[float]] = [[float("nan")] * len(blocks) for _ in rows]
    for name, rank in ranks.items():
        block = block_of(name)
        column = blocks.index(-1 if block is None else block)
        grid[rows.index(name.rpartition(".")[2])][column] = rank
    figure, axes = _page(2.2 + 0.5 * len(blocks), 1.2 + 0.38 * len(rows))
    figure.set_layout_engine("constrained")
    shades = axes.imshow(grid, cmap="Blues", aspect="auto", vmin=0)
    dark = max(ranks.values()) / 2
    for y, row in enumerate(grid):
        for x, rank in enumerate(row):
            if rank == rank:  # not NaN: a site is there
                shade = "white" if rank > dark else "black"
                axes.text(x, y, f"{rank:.0f}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(blocks)), ["none" if b < 0 else str(b) for b in blocks])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("block")
    axes.set_title(f"rank in use: {sum(ranks.values())} in all")
    figure.colorbar(shades)
    _write(figure, path)


def _page(width: float, height: float) -> tuple[Any, Any]:
    """A figure of `width` x `height` inches that needs no display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _write(figure: Any, path: Path) -> None:
    """Draw a figure as PNG into a file, which is replaced and never written through."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    commit.write_bytes(path, image.getvalue())


def _smoothed(values: list[float], decay: float = 0.9) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(decay * smooth[-1] + (1 - decay) * value if smooth else value)
    return smooth
