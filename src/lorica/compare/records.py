"""What a study measured: results.jsonl, a JSON line for each finished unit, only appended to.

    start   versions, machine, digests of the rows, notices
    side    a side: its method, rank and settings
    base    scores of the base without adapter
    trial   a run of the rate search, at one rung
    rate    the rate that was chosen for a side
    final   a run with one seed: its scores
    cost    time and memory of a side                (measured anew, a second study differs here)
    spent   seconds of a group of runs               (likewise; no report shows them)

Where a unit has several lines, the last one counts. A line that a kill cut short is skipped.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorica import plain_files, strict_json
from lorica.errors import FileError, ResourceError, writing

RECORDS = "results.jsonl"


class Records:
    """The records of a study in `folder`; those of earlier sittings are read first."""

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
        """Write records, and wait until they are on the disk. Each has a "kind"."""
        records = list(records)
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with writing(self.path), plain_files.open_to_append(self.path) as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # a killed process left half a line
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self._records += [json.loads(line) for line in lines.splitlines()]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in `folder`, oldest first; none if it has none. A torn line is skipped."""
    path, records = folder / RECORDS, []
    if not plain_files.is_file(path):
        return []
    for line in plain_files.read_lines(path):
        with suppress(ValueError):
            record = strict_json.parse(line)
            records += [record] if isinstance(record, dict) and "kind" in record else []
    return records


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block, this process alone writes to the study. A killed one leaves no lock.

    Raises: ResourceError if another process holds it; FileError if something there is a link.
    """
    plain_files.check(folder, RECORDS, ".lock", "study.yaml", "runs", "results.json", "report.html")
    with writing(folder), plain_files.open_to_append(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"another process works on the study in {folder}.", fix="wait for it, or stop it"
            ) from None
        yield


def check_study_folder(folder: Path) -> None:
    """Raises: FileError if `folder` holds no study."""
    if not plain_files.is_file(folder / RECORDS):
        raise FileError(
            f"{folder} is no study: it has no {RECORDS}.",
            fix="lorica compare STUDY.yaml --output FOLDER makes one",
        )


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
