"""lorica methods: the methods and their settings, from their source files."""

import re
from collections.abc import Iterator

from cyclopts import App
from rich.console import Console
from rich.table import Column, Table

from lorica.cli.help import method_entry, print_settings
from lorica.cli.options import Json, Switch, print_json
from lorica.recipe.catalogue import Entry, method, methods

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
LISTED = ("method", "arXiv", "learning rate", "merge", "LoRA", "4-bit", "mixed")
"""Columns that fit a terminal; lorica methods NAME has the number of trained parameters."""
LEGEND = """\
learning rate: default with AdamW, for a base of hidden size 64 and of 4096
merge:  can be merged into the weights of the base
LoRA:   lorica export writes it as a LoRA: exact, approximate (truncated, with --rank), or never
4-bit:  works on a quantised base
mixed:  every row of a batch may have an adapter of its own

lorica methods NAME describes a method and its settings."""


@app.default
def show(name: str | None = None, /, *, json: Json = False, markdown: Switch = False) -> None:
    """List the methods, or the settings of one.

    Parameters
    ----------
    name
        A method. Without it, all methods are listed.
    markdown
        Print the list as a Markdown table, as in the documentation.
    """
    entries = [method(name)] if name else list(methods().values())
    if json:
        print_json([_as_json(entry) for entry in entries])
    elif markdown:
        print("\n".join(markdown_rows(entries)))
    elif name:
        _print_method(entries[0], Console(highlight=False))
    else:
        _print_list(entries, Console(highlight=False))


def _print_list(entries: list[Entry], console: Console) -> None:
    table = Table(*(Column(name, no_wrap=True) for name in LISTED), box=None, padding=(0, 1, 0, 0))
    for entry in entries:
        cells = dict(zip(COLUMNS, row(entry), strict=True))
        table.add_row(*(cells[column] for column in LISTED))
    console.print(table)
    console.print("\n" + LEGEND, markup=False, soft_wrap=True)


def _print_method(entry: Entry, console: Console) -> None:
    console.print(entry.about, markup=False, soft_wrap=True)
    count = f"Trained parameters per site: {entry.facts['count'] or '-'}"
    console.print(f"\n{count}", markup=False, soft_wrap=True)
    console.print(about_rates(entry), markup=False)
    if "expert" in entry.facts["kinds"]:
        about = "By default not adapted; --target_parameters experts adapts them."
        console.print(f"Fused weights of experts: {about}", markup=False, soft_wrap=True)
    if entry.options:
        print_settings(console, entry.name, [method_entry(option) for option in entry.options])


def row(entry: Entry) -> list[str]:
    """The cells of a method, in the order of COLUMNS."""
    facts = entry.facts
    paper = re.search(r"arXiv:([\d.]+)", str(facts["paper"]))
    to_lora = str(facts["to_lora"])
    return [
        entry.name,
        paper[1] if paper else "-",
        str(facts["count"]) or "-",
        " to ".join(f"{rate:g}" for rate in facts["rates"][:2]),
        "no" if to_lora == "never" else "yes",
        {"approximate": "approx."}.get(to_lora, to_lora),
        "yes" if facts["on_quantised"] else "no",
        "yes" if facts["mixes"] else "no",
        "yes",
    ]


def about_rates(entry: Entry) -> str:
    """The default learning rates of a method, with their source."""
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


def _as_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "about": entry.about,
        **entry.facts,
        "settings": [vars(option) for option in entry.options],
    }
