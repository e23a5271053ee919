"""The figures as a page: a table for each section, and the picture."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed import figures, picture
from benchmarks.speed.sections import SECTIONS
from benchmarks.speed.work import Shape

MIB = 2**20
PICTURE = "speed.png"
LEGEND = "Blue: Lorica. Yellow: the others. Grey: the base. Thin lines: the range over the rounds."
HOW = """\
Made by `make bench`; do not edit by hand. `python -m benchmarks.speed --help` runs parts of it, and
`python -m benchmarks.speed.peers.install` installs the peers.

The model is a Llama with random weights ({shape}),
on rows as long as Alpaca's. Every side is a process of its own with one thread, where no section
says otherwise; it takes a step that is not timed before those that are. Sides take turns, in an
order that changes from round to round. Ratios are taken within a round: their median is given, the
standard error of their mean (±), and their range. Time is that of the process, not of the clock.
Tokens are real ones, without padding. Memory is the most that a step takes over the base: the
adapter, its optimizer, gradients and activations. The first step's time is from the start of the
process, imports included, on the clock."""

NOT_HERE = """\
**bfloat16**, where no section above says so: on a processor without instructions for it a step
takes many times as long, whoever takes it. `--dtype bfloat16` measures it.

**A GPU.** None was at hand. `python -m benchmarks.recipe_gpu` runs a published recipe beside PEFT
(a 7B LLaMA's shape, rank 8 on queries and values, micro-batches of 4), against the 192 minutes and
21 GB that its article states for 62,400 iterations on an A100."""


def write(results: dict[str, Any], path: Path) -> None:
    """`path`, in Markdown, and the picture beside it."""
    if not results:
        raise SystemExit("nothing has been measured yet: run `python -m benchmarks.speed`")
    known = list(SECTIONS)
    results = dict(sorted(results.items(), key=lambda one: known.index(one[1]["section"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.draw(results, path.parent / PICTURE)
    shape = ", ".join(f"{key} {value:,}" for key, value in asdict(Shape()).items())
    lines = ["# What a training step costs", "", HOW.format(shape=shape), ""]
    lines += [f"![all sections]({PICTURE})", "", LEGEND]
    for found in results.values():
        lines += ["", f"## {figures.title(found)}", "", SECTIONS[found["section"]].how, ""]
        lines += section(found)
    if not any(found["machine"]["gpu"] for found in results.values()):
        lines += ["", "## What is not here", "", NOT_HERE]
    path.write_text("\n".join(lines) + "\n")


def section(found: dict[str, Any]) -> list[str]:
    """A section's table in Markdown, what its gates said, what it left out, and where it ran."""
    lines = scaling(found) if found["section"] == "scaling" else comparison(found)
    if found["gates"]:
        lines += ["", "The gates:", "", *(f"- {line}" for line in found["gates"])]
    if found["missing"]:
        lines += ["", f"Not installed, and so left out: {'; '.join(found['missing'])}."]
    if found.get("failed"):
        lines += ["", f"Failed here, and so left out: {'; '.join(found['failed'])}."]
    return [*lines, "", where(found)]


def comparison(found: dict[str, Any]) -> list[str]:
    about, sides = SECTIONS[found["section"]], found["sides"]
    columns = figures.columns(about, list(sides))
    heads = [head for title in columns for head in (title, "±", "range")]
    rows = []
    for name, one in sides.items():
        row = [name, f"{statistics.median(figures.rates(one)):,.0f}"]
        for by in columns.values():
            ratios = figures.ratios(one, sides[by[name]], is_time=about.is_time)
            row += [f"{statistics.median(ratios):.2f}", f"{figures.error(ratios):.2f}"]
            row.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
        row.append(f"{one['memory'] / MIB:,.0f}")
        rows.append(row if about.together else [*row, f"{one['first_step']:.1f} s"])
    heads = ["", "real tokens/s", *heads, "MiB over the base"]
    return table(heads if about.together else [*heads, "first step after"], rows)


def scaling(found: dict[str, Any]) -> list[str]:
    rows = []
    for kind, curve in figures.curves(found["sides"]).items():
        off = [figures.off_line(curve["size"], curve[key]) for key in ("seconds", "bytes")]
        for i, size in enumerate(curve["size"]):
            row = [f"{size:,.0f} {'tokens' if kind == 'rows' else kind}"]
            row += [f"{size / curve['size'][0]:.2f}"]
            for key, unit, off_line in (("seconds", 1, off[0]), ("bytes", MIB, off[1])):
                value, first = curve[key][i], curve[key][0]
                shown = f"{value / unit:,.2f}" if key == "seconds" else f"{value / unit:,.0f}"
                row += [shown, f"{value / first:.2f}", f"{off_line:.1%}" if i == 0 else ""]
            rows.append(row)
    heads = ["", "size", "s a step", "over the first", "off the line"]
    return table([*heads, "MiB over the base", "over the first", "off the line"], rows)


def where(found: dict[str, Any]) -> str:
    """The machine, the versions and the rounds."""
    machine, sides = found["machine"], found["sides"]
    versions: dict[str, dict[str, None]] = {}  # those of peers beside ours
    for one in sides.values():
        for name, version in one["versions"].items():
            versions.setdefault(name, {})[version] = None
    rounds = len(next(iter(sides.values()))["rounds"])
    return (
        f"{machine['processor']}, {machine['capability']}, "
        f"{'with' if machine['bf16'] else 'without'} bfloat16 instructions, "
        f"{'GPU not used' if machine['gpu'] else 'no GPU at hand'}. "
        + ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
        + f". {rounds} rounds; by the clock they took {figures.on_the_clock(sides):.2f} times as "
        "long as by the process's time (median)."
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
