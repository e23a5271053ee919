"""Results and reports as HTML tables, for notebooks. Every text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lorica.errors import counted


def report_html(report: Mapping[str, Any]) -> str:
    """An evaluation, from its plain JSON (Report.as_dict)."""
    measures = report["measures"].items()
    adapted = any(measure["adapter"] for _, measure in measures)
    systems = ("base", "adapter", "difference") if adapted else ("base",)
    rows = [
        [
            name.replace("_", " "),
            *(_interval(measure[s]) for s in systems),
            *([measure["verdict"] or ""] if adapted else []),
        ]
        for name, measure in measures
    ]
    title = f"{report['path']}: {counted(report['rows'], 'row')} of {report['data']}"
    blocks = [_title(title), _table(["", *systems, *([""] if adapted else [])], rows)]
    if classes := report.get("classes"):
        measured = [s for s in ("base", "adapter") if s in classes["confusion"]]
        f1 = [
            [label, f"{figures['rows']:,}", *(_interval(figures[s]) for s in measured)]
            for label, figures in classes["f1"].items()
        ]
        blocks.append(_table(["F1 of class", "rows", *measured], f1))
    examples = report["examples"]
    if examples:
        keys = [
            key
            for key in ("where", "prompt", "wanted", "base", "adapter")
            if any(e.get(key) is not None for e in examples)
        ]
        blocks.append(_table(keys, [[e.get(key) or "" for key in keys] for e in examples]))
    return "".join(
        [*blocks, _notices(report["lines"]), "<p>in brackets: 95 % confidence intervals</p>"]
    )


def result_html(folder: str, figures: Mapping[str, Any], notices: Sequence[str]) -> str:
    """A training run, from its results.json."""
    rows = [["folder", folder]]
    rows += [[k, str(figures[k])] for k in ("method", "steps") if k in figures]
    if (loss := figures.get("train_loss")) is not None:
        rows.append(["training loss", f"{loss:.4f}"])
    for key in ("held_out_loss", "held_out_accuracy"):
        pair = figures.get(key) or {}
        if pair.get("before") is not None and pair.get("after") is not None:
            rows.append([key.replace("_", " "), f"{pair['before']:.4f} → {pair['after']:.4f}"])
    if (parameters := figures.get("parameters")) is not None:
        counts = f"{parameters['trained']:,} of {parameters['total']:,}"
        rows.append(["trained parameters", counts])
    if (seconds := figures.get("seconds")) is not None:
        rows.append(["seconds", f"{seconds:,.1f}"])
    return _title("Lorica run") + _table([], rows) + _notices(notices)


def _interval(interval: Mapping[str, float | None] | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (
        "?" if v is None else f"{v:.4g}" for v in (interval[k] for k in ("value", "low", "high"))
    )
    return f"{value} [{low}, {high}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{body}</table>"


def _title(text: str) -> str:
    return f"<p><b>{escape(text)}</b></p>"


def _notices(notices: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(n)}</li>" for n in notices) + "</ul>" if notices else ""
