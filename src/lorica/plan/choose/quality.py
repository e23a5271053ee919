"""What is wrong with the rows, worst first: data decide more than the method does.

`lorica check` counts it; here are the bounds, the consequences and the fixes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from lorica.errors import counted, listed
from lorica.plan.choose.reason import percent
from lorica.plan.choose.situation import Rows

FEW_ROWS, FEW_VALIDATION = 200, 50
SMALL_SHARE = 0.01  # of rows; below it a finding is a note
BY_DESIGN = 0.5  # of rows; above it, several answers to one prompt are what the rows are
UNBALANCED = 10  # times as many rows in the largest class as in the smallest


@dataclass(frozen=True)
class Finding:
    """level: error: the training would stop. warning: fix it first. note: good to know."""

    level: Literal["error", "warning", "note"]
    what: str
    fix: str
    evidence: tuple[str, ...] = ("article-data",)


def findings(rows: Rows) -> list[Finding]:
    """Everything that stands above the choice of a method, the worst first."""
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(_findings(rows), key=lambda finding: order[finding.level])


def _findings(rows: Rows) -> Iterator[Finding]:
    for problem in rows.problems:
        yield Finding("error", problem, "the training stops on this; see the message", ())
    yield from _repeated(rows)
    yield from _answers(rows)
    yield from _lengths(rows)
    yield from _few(rows)
    yield from _classes(rows)
    for notice in rows.notices:
        fix = "lorica check shows the rows"
        if "cannot write" in notice:
            yield Finding("warning", notice, f"take another base, or write them otherwise: {fix}")
        else:
            yield Finding("note", notice, fix, ("rule-check",))


def _repeated(rows: Rows) -> Iterator[Finding]:
    if rows.duplicates:
        yield Finding(
            _level(rows.duplicates, rows),
            f"{_share(rows.duplicates, rows)} repeat an earlier row: they count more than others",
            "remove them, if that is not meant",
        )


def _answers(rows: Rows) -> Iterator[Finding]:
    if rows.empty:
        yield Finding(
            _level(rows.empty, rows),
            f"{_share(rows.empty, rows)} have an empty answer: nothing is learned from them",
            "fill in the answers, or remove the rows",
        )
    prompts, several = rows.conflicting
    if not several:
        return
    if rows.kind == "label":
        what, fix = "texts have several classes", "decide for one class, or remove the rows"
    else:
        what = "prompts have several different answers"
        fix = (
            "if one is right, remove the others; if all are, no loss below their spread is possible"
        )
    by_design = several > BY_DESIGN * rows.rows and rows.kind != "label"
    yield Finding(
        "note" if by_design else _level(several, rows),
        f"{prompts:,} {what} ({_share(several, rows)})",
        fix,
    )


def _lengths(rows: Rows) -> Iterator[Finding]:
    if not rows.overlong or (rows.kind == "text" and rows.policy == "split"):
        return
    limit = f"longer than the limit of {rows.max_length:,} tokens (longest: {rows.longest:,})"
    happens = {
        "raise": "the training stops on them",
        "truncate": "their ends are cut off, answers included",
        "drop": "they are left out",
        "split": "they are split into several rows",
    }[rows.policy]
    level = "note" if rows.policy == "split" else _level(rows.overlong, rows)
    yield Finding(
        "error" if rows.policy == "raise" else level,
        f"{_share(rows.overlong, rows)} are {limit}: {happens}",
        "shorten them, or decide: --data.overlong drop|truncate",
        ("rule-overlong",),
    )


def _few(rows: Rows) -> Iterator[Finding]:
    if rows.kind == "text":
        return  # a file of text is one row
    if rows.train < FEW_ROWS:
        yield Finding(
            "warning",
            f"{counted(rows.train, 'training row')}{_split(rows)}: too few to learn more than a "
            "form of answers",
            f"write more, so that {FEW_ROWS} at least remain to train on; few good rows teach a "
            "style, no new knowledge",
            ("paper-lima",),
        )
    if not rows.validation:
        yield Finding(
            "warning",
            "no validation rows: nothing stops a run that gets worse",
            "leave --data.validation out: a twentieth of the rows",
            ("rule-early-stopping",),
        )
    if 0 < rows.validation < FEW_VALIDATION:
        error = 1 / sqrt(rows.validation)
        yield Finding(
            "note",
            f"{counted(rows.validation, 'validation row')}: a share measured on them is uncertain "
            f"by {100 * error:.0f} points (95 %)",
            "keep a file of test rows apart: lorica eval RUN --data test.jsonl",
            ("rule-interval",),
        )


def _split(rows: Rows) -> str:
    """Why the training rows are fewer than those of the file."""
    if rows.train + rows.validation != rows.rows or not rows.validation:
        return ""
    return f" of {rows.rows:,}, after {rows.validation:,} were split off for validation"


def _classes(rows: Rows) -> Iterator[Finding]:
    if len(rows.classes) < 2:
        return
    least, most = min(rows.classes.values()), max(rows.classes.values())
    if most < UNBALANCED * least:
        return
    small = [name for name, count in rows.classes.items() if count * UNBALANCED <= most]
    largest = max(rows.classes, key=lambda name: rows.classes[name])
    yield Finding(
        "warning",
        f"the classes are unbalanced: {largest} has {most:,} rows, and "
        f"{listed((f'{n} {rows.classes[n]:,}' for n in small), 3)}; always answering {largest} is "
        f"right in {percent(most / max(sum(rows.classes.values()), 1))}",
        "judge by macro F1, not by accuracy, and add rows of the small classes",
        ("rule-f1",),
    )


def _level(count: int, rows: Rows) -> Literal["warning", "note"]:
    return "warning" if count >= SMALL_SHARE * rows.rows else "note"


def _share(count: int, rows: Rows) -> str:
    return f"{count:,} of {counted(rows.rows, 'row')} ({percent(count / max(rows.rows, 1))})"
