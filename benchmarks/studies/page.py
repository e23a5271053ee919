"""The pages of the studies, in Markdown."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.studies.checks import Measured, Outcome, Verdict
from benchmarks.studies.claims import CLAIMS, Claim
from docs.generate.markdown import cell, page, table
from lorica.cli.planned import duration, size
from lorica.compare.results import StudyResult
from lorica.compare.verdict import StudyVerdict, verdict_of

WORST: tuple[Verdict, ...] = ("does not hold", "not shown", "holds")
NOTE = "Written by `python -m benchmarks.studies`; do not edit by hand."
HOW = """\
Each row compares two sides of the study. A difference has its 95 % interval over rows and seeds, as
in [What a comparison shows](../guides/statistics.md); beyond zero it **holds** or **does not
hold**, else it is **not shown**. Values are *alike* where the whole interval lies within 2 % (5 %
where full fine-tuning is meant) of the second one. Time and memory are measured once, in a process
of their own: a ratio that is nearer than 10 % (time) or 3 % (memory) to what the claim says is not
shown. Some 400 MiB of each memory are Python and torch. A claim gets the worst verdict of its rows.
These intervals are of single comparisons: of twenty such, one may be wrong."""
SCALE = """\
The base has 5 million parameters, and the rows are made by a program. A claim that fails here may
hold for models a thousand times larger, and one that holds here may fail there. What carries over
is the command: the same study on another base and other rows answers for them."""


def study_page(folder: Path, result: StudyResult) -> str:
    """The page of one study."""
    verdict, claims = verdict_of(result), CLAIMS[result.name]
    outcomes = outcomes_of(result)
    rows = [row for claim in claims for row in _rows(claim, outcomes[claim])]
    return page(
        f"Study: {result.name}",
        NOTE,
        f"`lorica compare studies/{result.name}.yaml` took {_took(folder)} "
        f"({result.machine}; {len(result.sides)} sides, "
        f"{len(result.study['seeds'])} seeds, rates searched for each side).",
        " ".join(verdict.sentences),
        "## What held and what did not",
        table(("claim", "source", "compared", "difference or ratio", "verdict"), rows),
        HOW,
        "## The sides",
        table(*_sides(result, verdict)),
        *_notices(result, verdict),
    )


def index(studies: Mapping[Path, StudyResult]) -> str:
    """The page that lists the studies."""
    parts = []
    for folder, result in studies.items():
        outcomes = outcomes_of(result)
        rows = [
            (cell(claim.says), cell(claim.source), worst(found))
            for claim, found in outcomes.items()
        ]
        parts += [
            f"## [{result.name}]({result.name}.md)",
            f"{len(result.sides)} sides, {_took(folder)}.",
            table(("claim", "source", "verdict"), rows),
        ]
    total = sum(map(_seconds, studies))
    return page(
        "Studies",
        NOTE,
        "What five articles on LoRA and its relatives say, tested with `lorica compare` by the "
        f"studies in `studies/`: all of them together take {duration(total)} on two cores. "
        "A verdict is that of the page of its study, which has the figures.",
        SCALE,
        *parts,
    )


def outcomes_of(result: StudyResult) -> dict[Claim, list[Outcome]]:
    """The outcomes of each claim of a study."""
    study = Measured.of(result)
    return {claim: [test.outcome(study) for test in claim.tests] for claim in CLAIMS[result.name]}


def worst(outcomes: list[Outcome]) -> str:
    """The verdict of a claim."""
    return min((outcome.verdict for outcome in outcomes), key=WORST.index)


def _rows(claim: Claim, outcomes: list[Outcome]) -> Iterator[tuple[str, ...]]:
    for i, outcome in enumerate(outcomes):
        first = (f"{cell(claim.says)}: **{worst(outcomes)}**", cell(claim.source))
        figures = (cell(outcome.compared), cell(outcome.figure), outcome.verdict)
        yield (*(("", "") if i else first), *figures)


def _sides(
    result: StudyResult, verdict: StudyVerdict
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each side, best first: every measure with its interval, and every cost."""
    measures = list(dict.fromkeys(m for by in verdict.sides.values() for m in by))
    heads = (
        "side",
        *(m.replace("_", " ") for m in measures),
        "rate",
        "trained",
        "step",
        "memory",
        "file",
    )
    by_name, rows = {side.name: side for side in result.sides}, []
    for name in verdict.ranking:
        side = by_name[name]
        cells = [cell(name)]
        for measure in measures:
            figures = verdict.sides.get(name, {}).get(measure)
            if figures is None:
                cells.append("failed")
                continue
            both = figures.figure.over_both
            cells.append(f"{figures.figure.value:.4g} [{both.low:.4g}, {both.high:.4g}]")
        cells.append(", ".join(dict.fromkeys(f"{f.learning_rate:g}" for f in side.finals)))
        cost = side.cost
        if cost is None:
            cells += ["", "", "", ""]
        else:
            memory = cost.peak_memory_bytes
            cells += [f"{cost.trained_parameters:,}", duration(cost.seconds_per_step)]
            cells += [size(memory) if memory else "", size(cost.adapter_bytes)]
        rows.append(tuple(cells))
    return heads, rows


def _notices(result: StudyResult, verdict: StudyVerdict) -> Iterator[str]:
    lines = [*result.missing, *result.notices, *verdict.notices]
    if lines:
        yield "## Notices"
        yield "\n".join(f"- {cell(line)}" for line in lines)


def _took(folder: Path) -> str:
    return duration(_seconds(folder))


def _seconds(folder: Path) -> float:
    """From the beginning of a study to its end, by the times of its files."""
    return (folder / "results.json").stat().st_mtime - (folder / "study.yaml").stat().st_mtime
