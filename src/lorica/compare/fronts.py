"""Pareto fronts of a study: the sides that no other beats in both quality and a cost."""

from collections.abc import Mapping

from lorica.compare.results import Cost, SideResult

COSTS = ("time", "memory", "file size")


def cost_of(cost: Cost, what: str) -> float | None:
    """Seconds per step, peak bytes, or the adapter's bytes. None: the platform does not tell."""
    if what == "time":
        return cost.seconds_per_step
    return cost.peak_memory_bytes if what == "memory" else cost.adapter_bytes


def fronts(
    sides: Mapping[str, SideResult], quality: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """By cost, the names on its front, the cheapest first.

    quality: of each side, higher is better. By the figures as they are: a side may be on a front
    by a difference that is not shown.
    """
    result = {}
    for what in COSTS:
        points = {}
        for name, value in quality.items():
            cost = sides[name].cost
            amount = None if cost is None else cost_of(cost, what)
            if amount is not None:
                points[name] = (amount, -value)
        result[what] = tuple(
            sorted((name for name in points if not dominated(name, points)), key=points.__getitem__)
        )
    return result


def dominated(name: str, points: Mapping[str, tuple[float, float]]) -> bool:
    """Whether another point is nowhere worse and somewhere better. Lower is better."""
    x, y = points[name]
    return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
