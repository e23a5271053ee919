"""Series: sides that differ in their rank alone have one color, one shape and one panel."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorica.compare.report.text import visible_name
from lorica.compare.results import SideResult


@dataclass(frozen=True)
class Series:
    """number: decides color and shape. sides: by rank."""

    number: int
    name: str
    sides: tuple[SideResult, ...]


def series_of(sides: Sequence[SideResult]) -> list[Series]:
    """The series, in the order in which the study names them."""
    groups: dict[str, list[SideResult]] = {}
    for side in sides:
        groups.setdefault(_name(side), []).append(side)
    return [
        Series(
            number, visible_name(name), tuple(sorted(group, key=lambda s: (s.rank or 0, s.name)))
        )
        for number, (name, group) in enumerate(groups.items())
    ]


def rank_label(side: SideResult) -> str:
    """The rank of a side, for a chart; "" if it has none."""
    return "" if side.rank is None else str(side.rank)


def _name(side: SideResult) -> str:
    return side.name.removesuffix(f" r={side.rank}") if side.rank is not None else side.name
