"""What a person may want to know of an adapter: what it was trained on, and how it scored.

The training is read from the model card in the folder, the evaluation from the run around it. Both
may come from someone else: they are plain texts, cut short.
"""

from pathlib import Path
from typing import Any

from lorica import plain_files
from lorica.errors import LoricaError
from lorica.evaluation.trained_rows import RESULTS
from lorica.formats import commit
from lorica.formats.adapter_folder import CARD

ROWS = ("data", "rows", "settings", "held-out loss", "held-out accuracy")
"""Rows of the model card that are kept."""
MEASURES = {"exact_match": "exact match", "token_accuracy": "token accuracy", "loss": "loss"}
MAX_CARD = 2**20
MAX_NOTE = 200  # characters


def notes_of(folder: Path) -> dict[str, str]:
    """Notes by their title. folder: of the adapter; that of its run is around it.

    A file that cannot be read gives a note that says so.
    """
    notes: dict[str, str] = {}
    for title, notes_in in (("model card", _training), ("evaluation", _evaluation)):
        try:
            notes |= notes_in(folder)
        except (LoricaError, UnicodeDecodeError):
            notes[title] = "its file cannot be read"  # which one is not for clients
    return {title: _short(text) for title, text in notes.items()}


def _training(folder: Path) -> dict[str, str]:
    """The rows of the table that lorica writes into the model card."""
    if not plain_files.is_file(folder / CARD):
        return {}
    notes: dict[str, str] = {}
    for line in plain_files.read_text(folder / CARD, MAX_CARD).splitlines():
        if line.startswith("## "):  # the table is above the first heading of this level
            break
        cells = [cell.strip() for cell in line.strip("| ").split(" | ", 1)]
        if line.startswith("|") and len(cells) == 2 and cells[0] in ROWS:
            notes[cells[0]] = cells[1].replace("\\|", "|").replace("&lt;", "<")
    return notes


def _evaluation(folder: Path) -> dict[str, str]:
    """The figures of `lorica eval` in the results.json of the adapter's run."""
    path = folder.parent / RESULTS
    if folder.name != "adapter" or not plain_files.is_file(path):
        return {}
    report = commit.read_json(path).get("evaluation")
    if not isinstance(report, dict) or not isinstance(report.get("measures"), dict):
        return {}
    rows = f"{report.get('rows')} rows of {Path(str(report.get('data'))).name}"
    figures = {
        title: f"{_figure(measure, 'adapter')}, the base {_figure(measure, 'base')}; {rows}"
        for name, title in MEASURES.items()
        if isinstance(measure := report["measures"].get(name), dict)
    }
    return {title: text for title, text in figures.items() if "?" not in text}


def _figure(measure: dict[str, Any], side: str) -> str:
    interval = measure.get(side)
    value = interval.get("value") if isinstance(interval, dict) else None
    return f"{value:.4g}" if isinstance(value, float | int) else "?"


def _short(text: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MAX_NOTE else f"{text[: MAX_NOTE - 3]}..."
