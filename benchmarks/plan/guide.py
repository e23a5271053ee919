"""The article's case as a table in docs/guides/planning.md.

python -m benchmarks.plan.guide            print the table
python -m benchmarks.plan.guide --write    put it into the guide
"""

import argparse
from pathlib import Path

from benchmarks.plan.article import planned
from lorica.plan.memory import Memory
from lorica.plan.time import Span

PAGE = Path(__file__).parents[2] / "docs/guides/planning.md"
BEGIN, END = "<!-- python -m benchmarks.plan.guide -->\n", "<!-- end -->"
MEASURED = {
    "LoRA": ("21 GB", "192 min"),
    "LLaMA-Adapter": ("22 GB", "162 min"),
    "full fine-tuning": ("2 x 30 GB or 4 x 22 GB", "1,956 min on 4 cards"),
}
"""What the article states."""


def table() -> str:
    lines = [
        "| | the article measured | planned, its way | planned for Lorica |",
        "|---|---|---|---|",
    ]
    for case in planned():
        name = case.side.name
        memory, minutes = MEASURED[name]
        sizes = f"{_gb(case.memory_as_there)} | {_gb(case.memory)}"
        times = f"{_minutes(case.run_as_there)} | {_minutes(case.run)}"
        lines += [f"| {name}, memory | {memory} | {sizes} |"]
        lines += [f"| {name}, time | {minutes} | {times} |"]
    return "\n".join([*lines, ""])


def _gb(memory: Memory) -> str:
    """In the article's unit, 10^9 bytes."""
    return f"{memory.total / 10**9:.1f} GB"


def _minutes(time: Span) -> str:
    low, expected, high = (round(s / 60) for s in (time.low, time.expected, time.high))
    return f"{expected:,} min ({low:,} to {high:,})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
