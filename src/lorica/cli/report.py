"""lorica report: one HTML file about a run, or about a study."""

from pathlib import Path

from cyclopts import App

from lorica import plain_files
from lorica.errors import FileError, listed

app = App(name="report")

RUN, STUDY = "config.yaml", "results.jsonl"
"""The file by which each is known."""


@app.default
def report(path: Path, /, *, output: Path | None = None) -> None:
    """Write one HTML file about a run or a study. It loads nothing, and opens from the disk.

    A run: its loss, evaluation, samples, notices and recipe. A study: the verdict, the table of
    all sides with intervals, learned against forgotten, costs, curves, samples and recipes.

    Parameters
    ----------
    path
        A run folder, or the folder of a study.
    output
        The file to write. By default report.html in the folder.
    """
    is_study = plain_files.is_file(path / STUDY)
    if not is_study and not plain_files.is_file(path / RUN):
        inside = listed(sorted(p.name for p in path.iterdir())) if path.is_dir() else None
        raise FileError(
            f"{path} is neither a run nor a study." if path.exists() else f"{path} does not exist.",
            **({"it holds": inside} if inside else {}),
            fix=f"name a folder with {RUN} (a run) or {STUDY} (a study)",
        )
    from lorica.compare.assemble import study_result
    from lorica.compare.report.write import REPORT, run_page, study_page, write_report
    from lorica.compare.verdict import verdict_of

    if is_study:
        result = study_result(path)
        page = study_page(result, verdict_of(result))
    else:
        page = run_page(path)
    file = output or path / REPORT
    write_report(file, page)
    print(f"{file}: {len(page.encode()) / 1024:,.0f} KiB; open it in a browser")
