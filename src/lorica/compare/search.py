"""The search of a learning rate by successive halving, from the losses that are known so far.

All rates run to the first rung; the better half goes on to the next, which is twice as far; the
best at the last rung, the end of the run, is chosen (Jamieson & Talwalkar, "Non-stochastic best arm
identification and hyperparameter optimization", 2016, arXiv:1502.07943, with eta = 2). A run that
stops at a rung follows the schedule of the whole run up to it. If the best rate is at an edge of
those tried, the next one beyond is tried as well, twice at most.

Nothing is remembered here: the same losses give the same answer, so a killed search goes on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

EXTENSIONS = 2
"""Rates that are tried beyond an edge of the grid."""

Losses = Mapping[tuple[float, int], float | None]
"""(learning rate, steps) -> validation loss; None: the run diverged."""


@dataclass(frozen=True)
class Todo:
    """Runs that must be trained before the search can go on. rung: index of `steps`."""

    rung: int
    steps: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """The rate of a side; None: every rate diverged. notices: on the edge of the grid."""

    rate: float | None
    notices: tuple[str, ...] = ()


def rungs_of(total: int, count: int) -> list[int]:
    """The steps of each rung: the last is the end of the run, each one before it half of that."""
    return sorted({max(total // 2**i, 1) for i in range(count)})


def advance(grid: Sequence[float], rungs: Sequence[int], losses: Losses) -> Todo | Choice:
    """What to train next, or the rate to choose. grid: rates, lowest first; rungs: steps."""
    if len(grid) == 1:
        return Choice(grid[0])
    alive, ranked = list(grid), list[float]()
    for index, steps in enumerate(rungs):
        if missing := [rate for rate in alive if (rate, steps) not in losses]:
            return Todo(index, steps, tuple(missing))
        ranked = _ranked(alive, steps, losses)
        alive = ranked[: math.ceil(len(alive) / 2)]
    best = ranked[0] if ranked else None
    return _beyond_edge(grid, rungs, losses, best)


def _ranked(rates: Sequence[float], steps: int, losses: Losses) -> list[float]:
    """The rates that did not diverge, best first; of equal ones the lower."""
    scored = [(loss, rate) for rate in rates if (loss := losses[rate, steps]) is not None]
    return [rate for _, rate in sorted(scored)]


def _beyond_edge(
    grid: Sequence[float], rungs: Sequence[int], losses: Losses, best: float | None
) -> Todo | Choice:
    """Try rates beyond an edge of the grid while the best one is there."""
    tried = list(grid)
    for _ in range(EXTENSIONS):
        if best == tried[-1]:
            rate = _round(tried[-1] * tried[-1] / tried[-2])
        elif best is None or best == tried[0]:
            rate = _round(tried[0] * tried[0] / tried[1])
        else:
            break
        for index, steps in enumerate(rungs):
            if (rate, steps) not in losses:
                return Todo(index, steps, (rate,))
            loss = losses[rate, steps]
            if loss is None or (best is not None and loss >= (losses[best, steps] or math.inf)):
                break
        else:
            best = rate
        tried = sorted([*tried, rate])
    return Choice(best, tuple(_edge_notices(grid, tried, best)))


def _edge_notices(
    grid: Sequence[float], tried: Sequence[float], best: float | None
) -> Iterator[str]:
    span = f"{tried[0]:g} to {tried[-1]:g}"
    if best is None:
        yield f"every learning rate from {span} diverged"
    elif best in (tried[0], tried[-1]):
        yield (
            f"the best learning rate, {best:g}, is an edge of those tried ({span}): a better one "
            "may lie beyond; give other rates.factors"
        )
    elif best not in grid:
        yield f"the best learning rate, {best:g}, is beyond the grid ({grid[0]:g} to {grid[-1]:g})"


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")
