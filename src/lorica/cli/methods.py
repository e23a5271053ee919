"""lorica methods: the methods and their settings, from their source files."""

from cyclopts import App
from rich.console import Console
from rich.table import Table

from lorica.cli.catalogue import Entry, method, methods
from lorica.cli.options import Switch, print_json

app = App(name="methods")


@app.default
def show(name: str | None = None, /, *, json: Switch = False) -> None:
    """List the methods, or the settings of one.

    Parameters
    ----------
    name
        A method; without it, all are listed.
    json
        Print JSON.
    """
    entries = [method(name)] if name else list(methods().values())
    if json:
        print_json([_plain(entry) for entry in entries])
        return
    console = Console(highlight=False)
    if not name:
        table = Table("method", "what it is", "settings", box=None, padding=(0, 2, 0, 0))
        for entry in entries:
            words = ", ".join(f"{o.name}={o.default}" for o in entry.options)
            table.add_row(entry.name, entry.title, words or "none")
        console.print(table)
        console.print("\nlorica methods NAME says what the settings of one mean.", markup=False)
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


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "about": entry.about,
        "settings": [vars(option) for option in entry.options],
    }
