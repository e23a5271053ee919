"""lorica methods: the methods and their settings, from their source files."""

import re
from collections.abc import Iterator

from cyclopts import App
from rich.console import Console
from rich.table import Column, Table

from lorica.cli.catalogue import Entry, method, methods
from lorica.cli.options import Switch, print_json

app = App(name="methods")


COLUMNS = (
    "method",
    "arXiv",
    "trained per site",
    "learning rate",
    "merge",
    "LoRA",
    "4-bit",
    "mixed",
    "resume",
)
LEGEND = """\
trained per site: numbers, of I inputs and O outputs; the other names are settings of the method
learning rate: the default with AdamW, on bases of hidden size 64 and 4096; between them a power
        of the hidden size
merge:  into the base's weights
LoRA:   by lorica export: exact, or approximate (a truncated SVD, with --rank), or never
4-bit:  works on a quantised base
mixed:  every row of a batch may have an adapter of its own
resume: a run that was killed goes on, on the CPU bit by bit

lorica methods NAME says what one is, and what its settings mean."""


@app.default
def show(name: str | None = None, /, *, json: Switch = False, markdown: Switch = False) -> None:
    """List the methods, or the settings of one.

    Parameters
    ----------
    name
        A method; without it, all are listed.
    json
        Print JSON.
    markdown
        Print the list as a Markdown table, as it stands in the documentation.
    """
    entries = [method(name)] if name else list(methods().values())
    if json:
        print_json([_plain(entry) for entry in entries])
        return
    if markdown:
        print("\n".join(markdown_rows(entries)))
        return
    console = Console(highlight=False)
    if not name:
        columns = [Column(c, no_wrap=c == "method", overflow="fold") for c in COLUMNS]
        table = Table(*columns, box=None, padding=(0, 1, 0, 0))
        for entry in entries:
            table.add_row(*(cell.replace("[", r"\[") for cell in row(entry)))
        console.print(table)
        console.print("\n" + LEGEND, markup=False, soft_wrap=True)
        return
    console.print(entries[0].about, markup=False, soft_wrap=True)
    console.print("\n" + about_rates(entries[0]), markup=False, soft_wrap=True)
    table = Table("setting", "type", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for o in entries[0].options:
        table.add_row(
            o.name, o.kind.replace("[", r"\["), o.default or "", o.note.replace("[", r"\[")
        )
    if entries[0].options:
        console.print()
        console.print(table)


def row(entry: Entry) -> list[str]:
    """The cells of a method, in the order of COLUMNS."""
    says = entry.facts
    found = re.search(r"arXiv:([\d.]+)", str(says["paper"]))
    to_lora = str(says["to_lora"])
    return [
        entry.name,
        found[1] if found else "-",
        str(says["count"]) or "-",
        " to ".join(f"{rate:g}" for rate in says["rates"][:2]),
        "no" if to_lora == "never" else "yes",
        {"approximate": "approx."}.get(to_lora, to_lora),
        "yes" if says["on_packed"] else "no",
        "yes" if says["mixes"] else "no",
        "yes",
    ]


def about_rates(entry: Entry) -> str:
    """The default learning rates of a method, and where they are from."""
    small, large, sgd = entry.facts["rates"]
    return (
        f"Default learning rate with AdamW: {small:g} on a base of hidden size 64 (measured: "
        f"docs/methods/results.md), {large:g} at 4096 ({entry.facts['rate_source']}), and a power "
        f"of the hidden size between them. With SGD: {sgd:g} (short runs at 64)."
    )


def markdown_rows(entries: list[Entry]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for entry in entries:
        name, paper, count, *rest = (cell.replace("|", r"\|") for cell in row(entry))
        link = paper if paper == "-" else f"[{paper}](https://arxiv.org/abs/{paper})"
        yield f"| `{name}` | {link} | `{count}` | {' | '.join(rest)} |"


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "about": entry.about,
        **entry.facts,
        "settings": [vars(option) for option in entry.options],
    }
