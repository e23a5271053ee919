"""What the rounds of a section say."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.sections import SIZES, Section


def title(found: dict[str, Any]) -> str:
    return f"{found['section'].capitalize()} (weights in {found['dtype']})"


def rates(one: dict[str, Any]) -> list[float]:
    """Real tokens a second of the process, in every round."""
    return [r["tokens"] / r["seconds"] for r in one["rounds"]]


def ratios(one: dict[str, Any], other: dict[str, Any], *, is_time: bool) -> list[float]:
    """Of one side's speed to another's (or of its time), within each round."""
    pairs = zip(rates(one), rates(other), strict=True)
    return [theirs / own if is_time else own / theirs for own, theirs in pairs]


def error(ratios: Sequence[float]) -> float:
    """Standard error of their mean; 0 of a single one."""
    return statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0


def columns(about: Section, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What is compared with what: for each column its heading, and side -> side to measure by."""
    word = "time" if about.is_time else "speed"
    if not about.in_pairs:
        return {
            f"{word} relative to {one}": dict.fromkeys(names, one)
            for one in about.over
            if one in names
        }
    found, by = {}, ""
    for name in names:
        by = name if name in about.over else by
        found[name] = by or name
    return {f"{word} relative to the row above": found}


def on_the_clock(sides: dict[str, Any]) -> float:
    """The clock's time over that of the process: above 1 something else had the processor."""
    return statistics.median(
        r["wall"] / r["seconds"] for one in sides.values() for r in one["rounds"]
    )


def curves(sides: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Of each kind of size that all was measured for: sizes, seconds and bytes of one step."""
    found = {}
    for kind, counts in SIZES.items():
        names = [f"{n} {kind}" for n in counts]
        if all(name in sides for name in names):
            rounds = [sides[name]["rounds"] for name in names]
            tokens = [float(one[0]["tokens"]) for one in rounds]
            found[kind] = {
                "size": tokens if kind == "rows" else [float(n) for n in counts],
                "seconds": [statistics.median(r["seconds"] for r in one) for one in rounds],
                "bytes": [float(sides[name]["memory"]) for name in names],
            }
    return found


def off_line(x: Sequence[float], y: Sequence[float]) -> float:
    """How far the worst point is from the least-squares line, as a share of its value."""
    slope, start = statistics.linear_regression(x, y)
    return max(abs(b - start - slope * a) / b for a, b in zip(x, y, strict=True))
