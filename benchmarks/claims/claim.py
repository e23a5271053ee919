"""What a claim is: words, the sides that are compared, and what is read off their runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.claims.verdict import Part

TUNING = 1000
"""The seed that learning rates are chosen with. It is not among those reported."""
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""All learning rates that are ever tried. A grid is four of them in a row."""

Run = dict[str, Any]
"""Figures of one run. score: what rates are chosen by, lower is better; None if it was stopped."""
Runs = dict[str, list[Run]]
"""The reported runs of each side, in the order of the seeds."""


@dataclass(frozen=True)
class Place:
    """Where a run finds things. quick: take a few steps only."""

    shared: Path
    folder: Path
    quick: bool


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    task: makes one run: task(settings, rate, seed, also, place). It stands in a module, so that
    another process finds it. rates: the grid, from LADDER; empty: nothing is learned.
    also: what the task measures in the reported runs beside the usual.
    """

    name: str
    task: Callable[..., Run]
    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A figure of the runs, as a column of the table."""

    heading: str
    key: str
    form: str = ".3f"


@dataclass(frozen=True)
class Claim:
    """source: what the paper found, number and place. how: what is done here.

    parts: reads the comparisons off the runs.
    """

    id: str
    title: str
    source: str
    how: str
    sides: Sequence[Side]
    columns: Sequence[Column]
    parts: Callable[[Runs], list[Part]] = field(repr=False)


def paired(runs: Runs, more: str, less: str, key: str) -> list[float | None]:
    """`key` of side `more` minus that of side `less`, seed by seed."""
    both = zip(runs[more], runs[less], strict=True)
    return [minus(one.get(key), other.get(key)) for one, other in both]


def minus(one: float | None, other: float | None) -> float | None:
    """one - other; None where a run was stopped."""
    return None if one is None or other is None else one - other


def grid(middle: float) -> tuple[float, ...]:
    """Four rates of the ladder, the second of them `middle`."""
    place = LADDER.index(middle)
    return LADDER[place - 1 : place + 3]
