"""Writes the report of a study or of a run."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorica import plain_files
from lorica.compare.influence import Combine
from lorica.compare.report.page import render
from lorica.compare.report.run import run_values
from lorica.compare.report.study import study_values
from lorica.compare.results import StudyResult
from lorica.compare.verdict import StudyVerdict, verdict_of
from lorica.errors import ConfigError, MissingError
from lorica.evaluation.task import Task, tasks_named
from lorica.formats import commit

REPORT = "report.html"
GENERATOR = b'<meta name="generator" content="lorica report">'
HEAD = 2000
"""Bytes at the start of a report in which it says that it is one."""


def study_page(result: StudyResult, verdict: StudyVerdict) -> str:
    """The report of a study as HTML."""
    return render(lambda detail: study_values(result, verdict, detail))


def judge(result: StudyResult) -> StudyVerdict:
    """The verdict of a study, with what its corpus measures (BLEU) need to be combined.

    Without the package of such a measure, a notice says that it has no statistics.
    """
    finals = [final for side in result.sides for final in side.finals]
    names = {name for f in finals for name, scores in f.scores.items() if len(scores.statistics)}
    combine: dict[str, Combine] = {}
    for name in sorted(names):
        with suppress(MissingError, ConfigError):
            task = tasks_named([name])[name]
            combine[name] = partial(_value, task)
    return verdict_of(result, combine)


def _value(task: Task, statistics: NDArray[np.float64]) -> float:
    """statistics: (rows, K)."""
    return float(task.combine(statistics.sum(axis=0)))


def run_page(folder: Path) -> str:
    """The report of one run as HTML. Raises: FileError if `folder` holds no run."""
    return render(lambda detail: run_values(folder, detail))


def write_report(path: Path, page: str) -> None:
    """Write a page; an older report in its place is replaced.

    Raises: ConfigError if anything else is in its place; ResourceError.
    """
    kind = plain_files.kind_of(path)
    is_report = False
    if kind == "file":
        with plain_files.open_file(path) as file:
            is_report = GENERATOR in file.read(HEAD)
    if kind is not None and not is_report:
        raise ConfigError(f"{path} exists, and is not a report.", fix="name a new file: --output")
    commit.write_text(path, page)
