"""The page: load time, peaks and step time of each side, by shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GIB = 2**30
HOW = """\
Written by `python -m benchmarks.large --write docs/performance/large.md`; do not edit by hand.
[Large bases](../guides/large.md) is the guide.

The bases are Llamas with random weights in bfloat16, in {shards} files: 1B has 22 layers of width
2,048, 7B has 32 layers of width 4,096; both have a vocabulary of 32,000. Each row is a fresh
process with one thread that loads the base, puts LoRA of rank 8 on all linear layers, and takes
one step of 64 tokens. Peaks are of resident memory since the process began, pages of mapped files
included until the system takes them back. When it does depends on what else the machine does, so a
side that reads many of them, such as PEFT's load of nf4, may peak at half in another run. Times are
process time. *Loading* in Lorica includes its checks: a forward pass in
training mode, two through a few blocks that show that the base attends from left to right, and on
nf4 a digest of each weight. A process that is not done after its limit has no figure for its step.

{machine}."""
HEADS = ("side", "load, s", "peak of load, GiB", "step, s", "peak of step, GiB")


def write(results: Mapping[str, Any], path: Path) -> None:
    """The page at `path`, in Markdown."""
    if not results:
        raise SystemExit("nothing has been measured yet: run `python -m benchmarks.large`")
    first = next(iter(results.values()))
    lines = ["# Large bases: memory and time", ""]
    lines += [HOW.format(shards=first["shards"], machine=first["machine"])]
    for shape in dict.fromkeys(name.partition(", ")[0] for name in results):
        own = {
            name.partition(", ")[2]: result
            for name, result in results.items()
            if name.startswith(f"{shape}, ")
        }
        lines += ["", *section(shape, own)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def section(shape: str, own: Mapping[str, Any]) -> list[str]:
    """The tables of one shape."""
    first = next(iter(own.values()))
    lines = [f"## {shape}", ""]
    lines += [f"{first['base'] / GIB:.2f} GiB, the largest file {first['shard'] / GIB:.2f} GiB."]
    sides = {side: result for side, result in own.items() if not side.startswith("lorica train")}
    if sides:
        lines += ["", f"| {' | '.join(HEADS)} |", "|---|---:|---:|---:|---:|"]
        keys = ("load_seconds", "load_peak", "step_seconds", "step_peak")
        lines += [
            f"| {side} | {' | '.join(_cell(result, key) for key in keys)} |"
            for side, result in sides.items()
        ]
    commands = {side: result for side, result in own.items() if side not in sides}
    if commands:
        lines += ["", "Whole commands: rows, load, checks, evaluation, one step, checkpoint.", ""]
        lines += ["| command | peak, GiB |", "|---|---:|"]
        lines += [f"| `{side}` | {_cell(result, 'peak')} |" for side, result in commands.items()]
    failures = [f"{side}: {own[side]['failed']}" for side in own if "failed" in own[side]]
    return lines + [text for failure in failures for text in ("", f"*{failure}.*")]


def _cell(result: Mapping[str, Any], key: str) -> str:
    if key not in result:
        return "-"
    return f"{result[key] / GIB:.2f}" if key.endswith("peak") else f"{result[key]:,.0f}"
