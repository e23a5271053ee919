"""Writes the report of a study or of a run."""

from pathlib import Path

from lorica import plain_files
from lorica.compare.report.page import render
from lorica.compare.report.run import run_values
from lorica.compare.report.study import study_values
from lorica.compare.results import StudyResult
from lorica.compare.verdict import StudyVerdict
from lorica.errors import ConfigError
from lorica.formats import commit

REPORT = "report.html"
GENERATOR = b'<meta name="generator" content="lorica report">'
HEAD = 2000
"""Bytes at the start of a report in which it says that it is one."""


def study_page(result: StudyResult, verdict: StudyVerdict) -> str:
    """The report of a study as HTML."""
    return render(lambda detail: study_values(result, verdict, detail))


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
