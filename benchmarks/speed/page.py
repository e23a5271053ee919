"""The figures as tables, and as a picture."""

from pathlib import Path
from typing import Any

MIB = 2**20


def table(name: str, found: dict[str, Any]) -> str:
    """One section as Markdown: time over that of its first side."""
    first = next(iter(found["sides"]))
    heads = [name, f"time over {first}", "range", "real tokens/s", "MiB over the base",
             "first step after"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for side, one in found["sides"].items():
        low, high = one["speed_range"]
        lines.append(
            f"| {side} | {1 / one['speed']:.3f} | {1 / high:.3f} to {1 / low:.3f} | "
            f"{one['tokens_per_second']:,.0f} | {one['memory'] / MIB:,.0f} | "
            f"{one['first_step']:.1f} s |"
        )
    return "\n".join(lines)


def write(results: dict[str, Any], path: Path) -> None:
    raise SystemExit("to be written")
