"""What the pages of runtimes have in common."""

import subprocess
from collections.abc import Mapping, Sequence
from datetime import date

from benchmarks.plan.run import machine
from benchmarks.runtimes import interpreter


def header(runtime: str, package: str) -> dict[str, str]:
    """The machine, the day, and the version of `package` in the runtime's environment."""
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    answer = subprocess.run([str(interpreter(runtime)), "-c", ask], capture_output=True, text=True)
    return {
        "machine": machine(),
        "version": answer.stdout.strip(),
        "date": date.today().isoformat(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def pair(row: Mapping[str, float]) -> str:
    """The worst and the mean of a comparison."""
    return f"{nats(row['worst'])} / {nats(row['mean'])}"


def nats(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.2g}"
