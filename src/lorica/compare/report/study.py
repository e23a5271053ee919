"""The page of a study: what each section shows, from its results and its verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lorica.compare.intervals import Figure
from lorica.compare.report.charts import (
    Plain,
    curve_section,
    forgetting_chart,
    front_charts,
    rate_charts,
)
from lorica.compare.report.drawing import swatch
from lorica.compare.report.heat import heat_map
from lorica.compare.report.numbers import NONE, compact, written
from lorica.compare.report.samples import Sample, sample
from lorica.compare.report.series import series_of
from lorica.compare.report.table import (
    between,
    figure_decimals,
    figures_of,
    is_better,
    study_table,
    words,
)
from lorica.compare.report.text import visible_name
from lorica.compare.results import StudyResult
from lorica.compare.study_tables import FORGOTTEN
from lorica.compare.verdict import StudyVerdict
from lorica.errors import counted, listed

SAMPLES_NOTE = (
    "Answers of the first seed; equal answers stand together. Marked: words that the reference "
    "does not have."
)


@dataclass(frozen=True)
class Detail:
    """How much a page holds: points of a curve, samples, characters of a text."""

    points: int
    samples: int
    characters: int


def study_values(result: StudyResult, verdict: StudyVerdict, detail: Detail) -> dict[str, Any]:
    """The values of the template."""
    series = series_of(result.sides)
    number_of = {side.name: group.number for group in series for side in group.sides}
    return {
        "kind": "study",
        "title": visible_name(result.name),
        "about": _about(result),
        "sentences": verdict.sentences,
        "legend": [(swatch(group.number), group.name) for group in series],
        "swatches": [swatch(group.number) for group in series],
        "table": study_table(result, verdict, number_of),
        "measures": _measures(result, verdict),
        "forgetting": forgetting_chart(result, verdict, series),
        "fronts": front_charts(result, verdict, series),
        "curves": [
            section
            for kind in ("validation", "curve")
            if (section := curve_section(series, kind, detail.points)) is not None
        ],
        "rates": rate_charts(series),
        "heats": [
            heat_map(visible_name(side.name), [f.ranks for f in side.finals if f.ranks])
            for side in result.sides
            if any(final.ranks for final in side.finals)
        ],
        "samples": _samples(result, number_of, detail),
        "samples_note": SAMPLES_NOTE,
        "failures": _failures(result),
        "notices": _notices(result, verdict),
        "missing": result.missing,
        "recipes_note": "Save one as recipe.yaml, then: lorica train recipe.yaml",
        "recipes": [(visible_name(side.name), side.recipe) for side in result.sides],
        "settings": yaml.safe_dump(dict(result.study), sort_keys=False, allow_unicode=True),
        "versions": list(result.versions.items()),
        "machine": result.machine,
        "goal": words(result.goal),
        "reference": visible_name(result.reference),
        "seeds": _seeds(result),
    }


def _about(result: StudyResult) -> list[tuple[str, str]]:
    """The facts under the title."""
    data = result.study.get("data")
    path = data.get("path") if isinstance(data, Mapping) else data
    rows = {len(s.rows) for side in result.sides for f in side.finals for s in f.scores.values()}
    facts = [
        ("base", result.study.get("base")),
        ("data", path),
        ("test", counted(max(rows), "row") if rows else None),
        (
            "compared",
            f"{counted(len(result.sides), 'side')}, {counted(_seeds(result), 'seed')} each",
        ),
        ("goal", words(result.goal)),
        ("reference", visible_name(result.reference)),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _seeds(result: StudyResult) -> int:
    """How many seeds each side is trained with."""
    planned = result.study.get("seeds")
    if isinstance(planned, list | tuple):
        return len(planned)
    return max((len(side.finals) for side in result.sides), default=0)


def _measures(result: StudyResult, verdict: StudyVerdict) -> Plain | None:
    """Every measure of every side; None if the goal is the only one."""
    measures = dict.fromkeys(name for side in verdict.sides.values() for name in side)
    measures = [name for name in measures if name != FORGOTTEN]
    if len(measures) < 2:
        return None
    columns, base = [], []
    for measure in measures:
        figures = figures_of(verdict, measure)
        decimals = figure_decimals(figures.values())
        verdicts = {c.side: c.verdict for c in verdict.comparisons.get(measure, ())}
        columns.append(
            [
                _with_intervals(figures.get(side.name), decimals, verdicts.get(side.name, ""))
                for side in result.sides
            ]
        )
        score = result.base.get(measure)
        base.append(written(score.value if score else None, decimals))
    betters = {n: side[n].better for side in verdict.sides.values() for n in measures if n in side}
    head = ["side", *(f"{words(name)}, {is_better(betters[name])}" for name in measures)]
    rows = [
        (visible_name(side.name), *(column[n] for column in columns))
        for n, side in enumerate(result.sides)
    ]
    return Plain(head, [*rows, *([("base alone", *base)] if result.base else [])])


def _with_intervals(figure: Figure | None, decimals: int, verdict: str) -> str:
    """verdict: on the side, against the reference."""
    if figure is None:
        return NONE
    rows, seeds = (between(i, decimals) for i in (figure.over_rows, figure.over_seeds))
    word = f"\n{verdict}" if verdict else ""
    return f"{written(figure.value, decimals)}\nrows {rows}\nseeds {seeds}{word}"


def _samples(result: StudyResult, number_of: Mapping[str, int], detail: Detail) -> list[Sample]:
    """The answers of the first seed of every side, row by row."""
    answers: dict[tuple[str, str], list[tuple[tuple[int, str], str]]] = {}
    for side in result.sides:
        final = next((f for f in side.finals if f.samples), None)
        for prompt, reference, answer in final.samples if final else ():
            name = number_of[side.name], visible_name(side.name)
            answers.setdefault((prompt, reference), []).append((name, answer))
    return [
        sample(prompt, reference, given, detail.characters)
        for (prompt, reference), given in list(answers.items())[: detail.samples]
    ]


def _failures(result: StudyResult) -> list[tuple[str, str]]:
    """(where, what): runs that ended early, and rates that diverged."""
    failures: dict[str, list[str]] = {}
    for side in result.sides:
        for final in side.finals:
            if final.error is not None:
                where = f"{visible_name(side.name)}, seed {final.seed}"
                failures.setdefault(final.error, []).append(where)
    for side in result.sides:
        if rates := sorted({t.learning_rate for t in side.trials if t.loss is None}):
            what = f"diverged in the search, at learning rate {listed(map(compact, rates))}"
            failures.setdefault(what, []).append(visible_name(side.name))
    return [("; ".join(where), what) for what, where in failures.items()]


def _notices(result: StudyResult, verdict: StudyVerdict) -> list[tuple[str, str]]:
    """(where, what): each text once, with the sides that gave it."""
    sources: dict[str, list[str]] = {
        text: ["study"] for text in (*result.notices, *verdict.notices)
    }
    for side in result.sides:
        for text in dict.fromkeys(text for final in side.finals for text in final.notices):
            sources.setdefault(text, []).append(visible_name(side.name))
    every = len(result.sides)
    return [
        ("all sides" if len(names) == every > 1 else ", ".join(names), text)
        for text, names in sources.items()
    ]
