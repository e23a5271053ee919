"""lorica compare: a study of methods, settings and ranks, from its file to its report."""

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators

from lorica.cli.options import Json, Switch, print_json
from lorica.cli.planned import duration, size
from lorica.errors import ConfigError

if TYPE_CHECKING:
    from lorica.compare.pairs import Comparison
    from lorica.compare.results import StudyResult
    from lorica.compare.verdict import StudyVerdict

UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})")

app = App(name="compare", usage="Usage: lorica compare STUDY.yaml --output FOLDER [OPTIONS]")

DryRun = Annotated[
    Switch, Parameter(help="Check the study and its rows, and list the units. Nothing is trained.")
]


Workers = Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=64))]


@app.default
def compare(
    study: Path | None = None,
    /,
    *,
    output: Path | None = None,
    budget: str | None = None,
    resume: Switch = False,
    workers: Workers = None,
    ray: str | None = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare methods, settings and ranks on one task, with evidence.

    The learning rate of each side is searched on validation rows; then each side is trained with
    every seed, on the same rows in the same order, and scored once on the test rows. Everything
    that has ended is kept: a study that was stopped goes on with --resume.

    Parameters
    ----------
    study
        The study. With --resume it may be left out: the output has its settings.
    output
        Folder of the study's results. By default runs/NAME, of NAME.yaml.
    budget
        Time after which no further run is started: 90s, 30min, 2h. What is missing is named.
    resume
        Go on with the study that the output holds.
    workers
        Processes that train at once. By default as many as the processor has cores and memory for.
    ray
        Train on a Ray cluster: its address, "auto" for the one of this machine, or "local" to start
        workers here. Needs lorica[ray].
    """
    seconds = None if budget is None else parse_duration(budget)
    if study is None and not (resume and output):
        raise ConfigError(
            "no study was named.",
            fix="lorica compare STUDY.yaml, or --output FOLDER --resume to go on with one",
        )
    folder = output or Path("runs") / Path(str(study)).stem

    from lorica.cli.planned_study import plan_study
    from lorica.compare.clock import Clock
    from lorica.compare.records import check_has_settings
    from lorica.compare.report.write import REPORT, study_page, write_report
    from lorica.compare.runner import prepare, run_study
    from lorica.compare.study import STUDY, read_study
    from lorica.compare.verdict import verdict_of

    if study is None:
        check_has_settings(folder)
    read = read_study(study or folder / STUDY)
    if dry_run:
        planned = plan_study(prepare(*read, folder))
        if json:
            print_json(planned.as_dict())
        else:
            print("\n".join(planned.lines()))
        return
    clock = Clock(seconds)
    result = run_study(*read, folder, resume=resume, clock=clock, workers=workers, ray=ray)
    verdict = verdict_of(result)
    page = study_page(result, verdict)
    write_report(folder / REPORT, page)
    if json:
        print_json(as_json(folder, result, verdict))
        return
    print("\n".join([*table(result, verdict), "", *verdict.sentences]))
    for line in [*result.missing, *verdict.notices]:
        print(f"  note: {line}")
    print(f"\nthe report is {folder / REPORT}; open it in a browser")
    if result.missing:
        print(f"go on with: lorica compare --output {shlex.quote(str(folder))} --resume")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30min" or "2h". Raises: ConfigError if it is none of these."""
    match = DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--budget is {text!r}, and not a time.", fix="--budget 30min, 90s or 2h")
    return float(match[1]) * UNITS[match[2]]


def table(result: "StudyResult", verdict: "StudyVerdict") -> list[str]:
    """The sides, best first: the goal with its interval, the verdict, and what each costs."""
    from lorica.compare.pairs import NOT_RUN

    verdicts = {c.side: c.verdict for c in verdict.comparisons.get(verdict.goal, ())}
    rows = [
        ["side", f"{verdict.goal} [95 %, rows and seeds]", "", "rate", "step", "memory", "file"]
    ]
    by_name = {side.name: side for side in result.sides}
    for name in verdict.ranking:
        side, measures = by_name[name], verdict.sides.get(name, {})
        value = "not run" if verdict.failed.get(name) == NOT_RUN else "failed"
        if (measure := measures.get(verdict.goal)) is not None:
            interval = measure.figure.over_both
            value = f"{measure.figure.value:.4g}"
            if not math.isnan(interval.low):  # of one seed there is none
                value += f" [{interval.low:.4g}, {interval.high:.4g}]"
        words = "reference" if name == verdict.reference else verdicts.get(name, "")
        rates = {final.learning_rate for final in side.finals if final.learning_rate}
        rate = ", ".join(f"{rate:g}" for rate in rates)
        cost, costs = side.cost, ["", "", ""]
        if cost is not None:
            memory = cost.peak_memory_bytes
            costs = [duration(cost.seconds_per_step), size(memory) if memory else "", ""]
            costs[2] = size(cost.adapter_bytes)
        rows.append([name, value, words, rate, *costs])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def as_json(folder: Path, result: "StudyResult", verdict: "StudyVerdict") -> dict[str, Any]:
    """The outcome of a study as plain data; results.json in its folder has every score."""
    return {
        "folder": str(folder),
        "goal": verdict.goal,
        "reference": verdict.reference,
        "ranking": verdict.ranking,
        "may_be_best": verdict.may_be_best,
        "sentences": verdict.sentences,
        "sides": {
            side.name: {
                "recipe": side.recipe,
                "measures": {
                    name: {
                        **measure.figure.over_both.as_dict(),
                        "by_seed": measure.by_seed,
                    }
                    for name, measure in verdict.sides.get(side.name, {}).items()
                },
                "cost": None if side.cost is None else vars(side.cost),
            }
            for side in result.sides
        },
        "comparisons": {
            measure: {c.side: _as_plain(c) for c in comparisons}
            for measure, comparisons in verdict.comparisons.items()
        },
        "missing": result.missing,
        "notices": [*result.notices, *verdict.notices],
    }


def _as_plain(comparison: "Comparison") -> dict[str, Any]:
    """A side against the reference: the difference with its interval, p with Holm's correction."""
    figure = comparison.difference
    return {
        "difference": None if figure is None else figure.value,
        "interval": None if figure is None else figure.over_both.as_dict(),
        "p_holm": comparison.p_holm,
        "verdict": comparison.verdict,
        "reason": comparison.reason,
    }
