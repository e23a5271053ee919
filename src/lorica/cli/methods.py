"""lorica methods: the methods and their settings, from their source files."""

import re
from collections.abc import Iterator

from cyclopts import App
from rich.console import Console
from rich.table import Table

from lorica.cli.catalogue import Entry, method, methods
from lorica.cli.options import Switch, print_json

app = App(name="methods")


COLUMNS = ("method", "arXiv", "trained per site", "merge", "LoRA", "4-bit", "mixed", "resume")
LEGEND = """\
trained per site: numbers, of I inputs and O outputs; the other names are settings of the method
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
        table = Table(*COLUMNS, box=None, padding=(0, 1, 0, 0))
        for entry in entries:
            table.add_row(*(cell.replace("[", r"\[") for cell in row(entry)))
        console.print(table)
        console.print("\n" + LEGEND, markup=False, soft_wrap=True)
        return
    console.print(entries[0].about, markup=False, soft_wrap=True)
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
        "no" if to_lora == "never" else "yes",
        {"approximate": "approx."}.get(to_lora, to_lora),
        "yes" if says["on_packed"] else "no",
        "yes" if says["mixes"] else "no",
        "yes",
    ]


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
