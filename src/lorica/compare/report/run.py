"""The page of one run, from its own folder: what it learned, what it cost, and how to repeat it."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from lorica import plain_files, strict_json
from lorica.compare.report.charts import Plain
from lorica.compare.report.drawing import swatch
from lorica.compare.report.heat import HeatMap, heat_map
from lorica.compare.report.loss_curve import loss_curve
from lorica.compare.report.numbers import BYTES, NONE, decimals_of, unit_of, written
from lorica.compare.report.samples import Sample, sample
from lorica.compare.report.study import Detail
from lorica.compare.report.text import visible_name
from lorica.errors import counted, listed
from lorica.recipe.yaml_file import read_yaml
from lorica.training.run import CONFIG, EVENTS, RESULTS, read_events

WEIGHTS = "adapter_model.safetensors"

SHARES = ("token_accuracy", "exact_match", "accuracy", "macro_f1")
"""Measures of `lorica eval` that are printed in percent, also in results without units."""


def run_values(folder: Path, detail: Detail) -> dict[str, Any]:
    """The values of the template. Raises: FileError if `folder` holds no run."""
    settings = read_yaml(folder / CONFIG).data
    recipe = plain_files.read_text(folder / CONFIG)
    events = read_events(folder) if plain_files.is_file(folder / EVENTS) else []
    has_ended = plain_files.is_file(folder / RESULTS)
    results = strict_json.read(folder / RESULTS, finite=False) if has_ended else {}
    evaluation = _mapping(results.get("evaluation"))
    again = shlex.quote(str(folder / CONFIG))
    curve = loss_curve(events, detail.points)
    return {
        "kind": "run",
        "title": visible_name(folder.resolve().name),
        "about": _about(settings, results),
        "sentences": [*_sentences(folder, results, evaluation, events)],
        "tables": [*_tables(folder, results, evaluation)],
        "curves": [curve] if curve else [],
        "heats": _heats(results),
        "swatches": [swatch(0), swatch(1)],
        "samples": _samples(evaluation, detail),
        "samples_note": "Marked: words that the reference does not have.",
        "notices": [*_notices(results, evaluation, events)],
        "recipes_note": f"To train it again: lorica train {again} --output NEW",
        "recipes": [("config.yaml", recipe)],
        "versions": _versions(folder),
    }


def _about(settings: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = _mapping(results.get("rows"))
    method = _mapping(settings.get("method"))
    facts = [
        ("base", settings.get("base")),
        ("data", _mapping(settings.get("data")).get("path")),
        ("trained on", counted(rows["train"], "row") if _is_count(rows.get("train")) else None),
        (
            "held out",
            counted(rows["validation"], "row") if _is_count(rows.get("validation")) else None,
        ),
        ("method", method.get("name") if method else settings.get("method")),
        ("rank", method.get("r")),
        ("seed", settings.get("seed")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _sentences(
    folder: Path,
    results: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    """What was learned, what the evaluation shows, and what it cost."""
    name = shlex.quote(str(folder))
    if not results:
        steps = max((e["step"] for e in events if _is_count(e.get("step"))), default=0)
        yield f"The run is not finished: it is at step {steps:,}."
        yield f"To go on: lorica train --resume {name}"
        return
    yield _learned(results)
    yield (
        _evaluated(evaluation) or f"It was not evaluated; to do so: lorica eval {name} --data FILE"
    )
    yield _cost(results)


def _learned(results: Mapping[str, Any]) -> str:
    steps = results.get("steps")
    start = f"In {counted(steps, 'step')}" if _is_count(steps) else "In training"
    for what in ("accuracy", "loss"):
        pair = _mapping(results.get(f"held_out_{what}"))
        before, after = pair.get("before"), pair.get("after")
        if _is_number(before) and _is_number(after):
            verb = "fell" if after < before else "rose" if after > before else "stayed"
            unit = " nats per label token" if what == "loss" else ""
            change = f"{verb} from {before:.4g} to {after:.4g}{unit}"
            return f"{start} the {what} on held-out rows {change}."
    if _is_number(loss := results.get("train_loss")):
        return f"{start} the training loss came to {loss:.4g}; no rows were held out."
    return f"{start} no loss was logged."


def _evaluated(evaluation: Mapping[str, Any]) -> str:
    """What the evaluation shows; "" without one."""
    verdicts: dict[str, list[str]] = {}
    for name, measure in _mapping(evaluation.get("measures")).items():
        if verdict := _mapping(measure).get("verdict"):
            verdicts.setdefault(str(verdict), []).append(name.replace("_", " "))
    if not verdicts:
        return ""
    rows, data = evaluation.get("rows"), Path(str(evaluation.get("data"))).name
    parts = [f"{verdict} in {listed(names)}" for verdict, names in verdicts.items()]
    count = counted(rows, "row") if _is_count(rows) else "rows"
    return f"Beside its base, on {count} of {data}: {'; '.join(parts)}."


def _cost(results: Mapping[str, Any]) -> str:
    parts = []
    if _is_number(seconds := results.get("seconds")):
        parts.append(f"took {seconds:,.0f} s")
    if _is_number(peak := results.get("peak_memory_bytes")):
        unit = unit_of([peak], BYTES)
        parts.append(f"used {peak / unit.size:,.0f} {unit.name} at its peak")
    parameters = _mapping(results.get("parameters"))
    trained, total = parameters.get("trained"), parameters.get("total")
    if _is_count(trained) and _is_count(total):
        parts.append(f"trained {trained:,} of {total:,} parameters")
    return f"It {', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}." if parts else ""


def _tables(
    folder: Path, results: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> Iterator[tuple[str, str, Plain]]:
    """(title, note, table) of the evaluation, and of what was predicted."""
    measures = {k: _mapping(m) for k, m in _mapping(evaluation.get("measures")).items()}
    if measures:
        rows = [_measure_row(name, measure) for name, measure in measures.items()]
        head = ("measure", "base", "adapter", "difference", "verdict")
        note = "In brackets: 95 % intervals over rows."
        yield "Evaluation", note, Plain(head, rows)
    if rows := [*_predicted(folder, results)]:
        note = (
            "Planned before anything was loaded, for this machine; off: predicted against measured."
        )
        yield "Predicted and measured", note, Plain(("", "predicted", "measured", "off"), rows)


def _measure_row(name: str, measure: Mapping[str, Any]) -> tuple[str, ...]:
    size = 100.0 if name in SHARES or measure.get("unit") == "share" else 1.0
    parts = [_mapping(measure.get(key)) for key in ("base", "adapter", "difference")]
    values = [abs(p["value"]) for p in parts if _is_number(p.get("value")) and p["value"]]
    decimals = 1 if size == 100 else min(4, decimals_of([min(values, default=1.0)], 3))
    label = name.replace("_", " ") + (", %" if size == 100 else "")
    cells = [_interval(part, size, decimals, signed=n == 2) for n, part in enumerate(parts)]
    return (label, *cells, str(measure.get("verdict") or NONE))


def _interval(part: Mapping[str, Any], size: float, decimals: int, *, signed: bool) -> str:
    numbers = [part.get(key) for key in ("value", "low", "high")]
    value, low, high = (
        written(n * size if _is_number(n) else None, decimals, signed=signed) for n in numbers
    )
    return f"{value} [{low}, {high}]" if low != NONE else value


def _predicted(folder: Path, results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of what was planned and what came: memory, time, file."""
    predicted = _mapping(results.get("predicted"))
    span = _mapping(predicted.get("seconds"))
    weights = folder / "adapter" / WEIGHTS
    size = weights.stat().st_size if plain_files.is_file(weights) else None
    figures = (
        ("peak memory", predicted.get("memory_bytes"), results.get("peak_memory_bytes"), BYTES),
        (
            "time",
            span.get("expected"),
            predicted.get("took_seconds", results.get("seconds")),
            (("s", 1.0),),
        ),
        ("adapter file", predicted.get("adapter_bytes"), size, BYTES),
    )
    for label, planned, came, units in figures:
        if not (_is_number(planned) and _is_number(came) and came > 0):
            continue
        unit = unit_of([came], units)
        numbers = [n / unit.size for n in (planned, came)]
        decimals = decimals_of(numbers, 3)
        planned_text, came_text = (written(n, decimals) for n in numbers)
        if label == "time" and _is_number(span.get("low")) and _is_number(span.get("high")):
            low, high = (written(span[key], decimals) for key in ("low", "high"))
            planned_text += f" [{low}, {high}]"
        off = written(100 * (planned / came - 1), 1, signed=True)
        yield f"{label}, {unit.name}", planned_text, came_text, f"{off} %"


def _heats(results: Mapping[str, Any]) -> list[HeatMap]:
    ranks = {k: v for k, v in _mapping(results.get("ranks")).items() if _is_count(v)}
    return [heat_map("", [ranks])] if ranks else []


def _samples(evaluation: Mapping[str, Any], detail: Detail) -> list[Sample]:
    """The answers of base and adapter to a few rows."""
    samples = []
    for example in _list(evaluation.get("examples"))[: detail.samples]:
        row = _mapping(example)
        answers = [
            ((number, name), row[name])
            for number, name in enumerate(("base", "adapter"))
            if isinstance(row.get(name), str)
        ]
        prompt, wanted = str(row.get("prompt", "")), str(row.get("wanted", ""))
        samples.append(sample(prompt, wanted, answers, detail.characters))
    return samples


def _notices(
    results: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """(where, what) of training and evaluation; of a run that is not finished, from its log."""
    logged = [event.get("text") for event in events if event.get("event") == "line"]
    for where, lines in (
        ("training", results.get("lines") if results else logged),
        ("evaluation", evaluation.get("lines")),
    ):
        yield from ((where, text) for text in _list(lines) if isinstance(text, str))


def _versions(folder: Path) -> list[tuple[str, str]]:
    """Those that the adapter was saved with."""
    manifest = folder / "adapter" / "manifest.json"
    if not plain_files.is_file(manifest):
        return []
    versions = _mapping(strict_json.read(manifest, finite=False).get("versions"))
    return [(str(name), str(version)) for name, version in versions.items()]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0
