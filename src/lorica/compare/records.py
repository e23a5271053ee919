"""What a study measured: results.jsonl, a JSON line for each finished unit, only appended to.

    start   settings, versions, machine, digests of the rows and of the base, notices
    side    a side: its method, rank and settings
    base    scores of the base without adapter
    trial   a run of the rate search, at one rung
    rate    the rate that was chosen for a side
    final   a run with one seed: its scores
    cost    time and memory of a side                (measured anew, a second study differs here)
    spent   seconds of a group of runs; of no side: of scoring the base
                                                     (likewise; no report shows them)

Where a unit has several lines, the last one counts. A last line that a kill cut short is left out;
anything else that is not a whole record of its kind is damage, and is refused.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorica import plain_files
from lorica.compare.record_kinds import parse_record
from lorica.compare.study import STUDY
from lorica.errors import FileError, ResourceError, writing

RECORDS = "results.jsonl"
RUNS = "runs"
"""Folder of the runs: it exists from the first unit on."""


class Records:
    """The records of a study in `folder`; those of earlier sittings are read first.

    Raises: FileError, with file and line, if one of them is damaged.
    """

    def __init__(self, folder: Path):
        self.path = folder / RECORDS
        self._records = read_records(folder)

    def of(self, kind: str, **facts: Any) -> list[dict[str, Any]]:
        """The records of a kind that have these facts, oldest first."""
        return [
            record
            for record in self._records
            if record["kind"] == kind and all(record.get(k) == v for k, v in facts.items())
        ]

    def last(self, kind: str, **facts: Any) -> dict[str, Any] | None:
        """The newest such record; None if there is none."""
        return next(reversed(self.of(kind, **facts)), None)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records, and wait until they are on the disk. Each is one of record_kinds."""
        lines = [json.dumps(record, allow_nan=False) for record in records]
        read_back = [parse_record(line) for line in lines]
        with writing(self.path), plain_files.open_to_append(self.path) as file:
            _end_last_line(file)
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._records += read_back


def _end_last_line(file: Any) -> None:
    """End the last line, if it is a whole record; remove it, if a kill cut it short."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    if is_torn(data[start:]):
        file.truncate(start)
    else:
        file.write(b"\n")
    file.seek(0, os.SEEK_END)


def is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of a record, as a kill leaves it at the end of a file."""
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in `folder`, oldest first; none if nothing was run yet.

    Raises: FileError, with file and line, if a record is damaged or does not fit those before it.
    """
    path, records = folder / RECORDS, []
    has_runs = plain_files.is_folder(folder / RUNS)
    if plain_files.is_file(path):
        plain_files.check_log(path)
        with plain_files.open_file(path) as file:
            for number, line in enumerate(file, 1):
                if is_torn(line):
                    break
                try:
                    record = parse_record(line)
                    _check_place(record, records)
                except ValueError as error:
                    raise _damaged(path, number, str(error)) from None
                records.append(record)
    elif not has_runs:
        return []
    if not records and has_runs:
        raise FileError(
            f"{path} has no records, and {folder / RUNS} has runs.",
            fix=f"restore {path.name} from a copy, or choose another output",
        )
    return records


def _check_place(record: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Raises: ValueError if a record cannot follow those before it."""
    kind = record["kind"]
    if not before and kind != "start":
        raise ValueError(f"the first record is a {kind}, not the start")
    sides = {other["name"] for other in before if other["kind"] == "side"}
    for name in [*record.get("sides", ()), *([record["side"]] if "side" in record else ())]:
        if name not in sides:
            raise ValueError(f"the {kind} is of the side {name!r:.80}, which has no record before")
    if kind == "final":
        finals = (o for o in before if o["kind"] == kind and o["side"] == record["side"])
        other = next((final for final in finals if final.get("scores")), None)
        if other is not None and record.get("scores"):
            _check_rows(record, other)


def _check_rows(final: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises: ValueError if two runs of a side were not scored on the same rows."""
    if final["scores"].keys() != other["scores"].keys():
        raise ValueError("the final has other measures than the final of its side before it")
    for name, scores in final["scores"].items():
        count, expected = len(scores["rows"]), len(other["scores"][name]["rows"])
        if count != expected:
            raise ValueError(
                f"{name} of the final has {count:,} rows, and {expected:,} in the final of its "
                "side before it"
            )


def _damaged(path: Path, number: int, what: str) -> FileError:
    return FileError(
        f"{path}:{number}: the record is damaged: {what}.",
        fix=f"restore {path.name} from a copy, or run the study into another output; nothing in it "
        "is to be edited",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block, this process alone writes to the study. A killed one leaves no lock.

    Raises: ResourceError if another process holds it; FileError if something there is a link.
    """
    plain_files.check(folder, RECORDS, ".lock", STUDY, RUNS, "results.json", "report.html")
    with writing(folder), plain_files.open_to_append(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"another process works on the study in {folder}.", fix="wait for it, or stop it"
            ) from None
        yield


def check_study_folder(folder: Path) -> None:
    """Raises: FileError if `folder` holds no study, or not all of it."""
    if not plain_files.is_file(folder / RECORDS):
        raise FileError(
            f"{folder} is no study: it has no {RECORDS}.",
            fix="lorica compare STUDY.yaml --output FOLDER makes one",
        )
    check_has_settings(folder)


def check_has_settings(folder: Path) -> None:
    """Raises: FileError if a study's folder, or the settings in it, is missing."""
    if not plain_files.is_file(folder / STUDY):
        what = f"{folder} has no {STUDY}, the settings of its study."
        fix = f"restore {STUDY}: it is the study as it was begun, with all settings"
        if not plain_files.is_file(folder / RECORDS):
            fix = "lorica compare STUDY.yaml --output FOLDER makes a study"
        raise FileError(what, fix=fix)
