"""The ranks that an adaptive method has left at each layer, as a table with shaded cells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVELS = 8
"""Shades, beside that of rank 0."""
BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Shade:
    text: str
    level: int


@dataclass(frozen=True)
class HeatMap:
    """rows: (kind of layer, one shade for each block; None where it has no such layer)."""

    title: str
    blocks: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Shade | None]]]
    total: float


def heat_map(title: str, ranks: Sequence[Mapping[str, int]]) -> HeatMap:
    """The mean over runs. ranks: of each run, rank by name of the layer."""
    names = list(dict.fromkeys(name for run in ranks for name in run))
    means = {n: sum(run.get(n, 0) for run in ranks) / len(ranks) for n in names}
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    blocks = sorted({_block(name) for name in names})
    highest = max(means.values(), default=0) or 1
    decimals = 0 if all(value == int(value) for value in means.values()) else 1
    cells: dict[tuple[str, int], Shade] = {}
    for name, value in means.items():
        level = 0 if value == 0 else max(1, round(LEVELS * value / highest))
        cells[name.rpartition(".")[2], _block(name)] = Shade(f"{value:.{decimals}f}", level)
    rows = [(kind, [cells.get((kind, block)) for block in blocks]) for kind in kinds]
    return HeatMap(title, ["–" if b < 0 else str(b) for b in blocks], rows, sum(means.values()))


def _block(name: str) -> int:
    """The number of the decoder block in a layer's name; -1: none."""
    match = BLOCK.search(name)
    return int(match[1]) if match else -1
