"""Where rows come from: a file, or a data set of the hub. Each row knows its place.

Whatever is wrong with a file is said with the file and the line or row, so that it can be
opened there. A path that exists is a file; `owner/name` that does not exist is looked up on
the hub, but only if its first part is no folder here (then it is a misspelt file). A single
word is never looked up: the library `datasets` takes "json", "text" and their like for a way
to read whatever files it finds in the working directory.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lorica.data import readers
from lorica.data.config import DataConfig
from lorica.data.notices import Notices
from lorica.errors import DataError, MissingError, closest, listed

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    fields: dict[str, Any]
    where: str  # "tickets.jsonl:17"


class Source:
    """The rows of `config.path`, or the first `config.limit`, read anew by each loop over them.

    notices: of the last loop, complete at its end. done, size: bytes that were read, and all.

    Raises: DataError if there is no such file; in a loop: DataError with file and line, or if
        there is no row; MissingError if a package for the format is missing.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.path = Path(config.path)
        self._hub = None
        self.size = 0
        if not self.path.exists() and _on_hub(config.path):
            self._hub = _load_from_hub(config)
        else:
            _must_be_file(self.path)
            self.size = self.path.stat().st_size
        self._reading = readers.Reading(config.limit)

    def __iter__(self) -> Iterator[Row]:
        self._reading = readers.Reading(self.config.limit)
        if self._hub is None:
            pairs = readers.READERS[self.path.suffix.lower()](self.path, self._reading)
        else:
            pairs = _hub_rows(self._hub, self.config.path)
        empty = True
        for fields, where in pairs:
            empty = False
            yield Row(fields, where)
        if empty:
            raise DataError(
                f"{self.config.path} holds no rows.", fix="give a file with at least one row"
            )

    def chunks(self, rows: int) -> Iterator[list[Row]]:
        """The rows in lists of at most so many."""
        every = iter(self)
        while chunk := list(islice(every, rows)):
            yield chunk

    @property
    def notices(self) -> Notices:
        return self._reading.notices

    @property
    def done(self) -> int:
        return self._reading.position()

    def digest(self) -> str:
        """sha256 of the file's bytes; of the rows as JSON when there is no file."""
        return digest(self.config, () if self.path.is_file() else self)


def read(config: DataConfig) -> list[Row]:
    """All rows of `config.path`, or the first `config.limit`; at least one.

    Raises: what `Source` does.
    """
    return list(Source(config))


def digest(config: DataConfig, rows: Iterable[Row]) -> str:
    """sha256 of the file's bytes; of the rows as JSON when there is no file."""
    path = Path(config.path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    sums = hashlib.sha256()
    for row in rows:
        sums.update(json.dumps(row.fields, sort_keys=True, default=str).encode("utf-8", "replace"))
    return sums.hexdigest()


def _on_hub(name: str) -> bool:
    if not HUB_NAME.fullmatch(name):
        return False
    if Path(name).suffix.lower() in readers.READERS:
        return False
    return not Path(name.partition("/")[0]).is_dir()


def _must_be_file(path: Path) -> None:
    known = " ".join(readers.READERS)
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in readers.READERS)
        raise DataError(
            f"{path} is a folder, not a file.",
            holds=listed(inside),
            fix="name one of its files" if inside else f"name a file that ends in {known}",
        )
    if not path.exists():
        folder = path.parent
        facts = {"folder": f"{folder} does not exist either"}
        if folder.is_dir():
            facts = {"closest": closest(path.name, (p.name for p in folder.iterdir()))}
        word = len(path.parts) == 1 and not path.suffix
        fix = "check the path; a data set of the hub is named owner/name" if word else None
        raise DataError(f"there is no file {path}.", fix=fix or "check the path", **facts)
    if not path.is_file():
        raise DataError(
            f"{path} is a pipe or a device, not a file.", fix="write the rows into a file first"
        )
    if path.suffix.lower() not in readers.READERS:
        raise DataError(
            f"{path} has a suffix that lorica does not read: {path.suffix or '(none)'}.",
            known=known,
            fix="convert it, or rename it if it is one of these",
        )


def _load_from_hub(config: DataConfig) -> Any:
    """The data set, memory-mapped, of the rows that are asked for."""
    try:
        import datasets
    except ImportError as error:
        raise MissingError(
            f"{config.path} is no file here, and reading the hub needs the package datasets.",
            fix='pip install "lorica[data]", or correct the path',
        ) from error
    name, _, subset = config.path.partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split=config.split)
        return rows.select(range(min(config.limit or len(rows), len(rows))))
    except Exception as error:  # the library raises a dozen classes, none of them its own
        raise DataError(
            f"{config.path} is no file here, and the hub does not give split {config.split!r} "
            "of a data set of that name.",
            reason=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="check the name, the split and the network; a subset is named owner/name:subset",
        ) from error


def _hub_rows(rows: Any, path: str) -> readers.Pairs:
    name = path.partition(":")[0]
    for number, row in enumerate(rows, 1):
        yield _named_classes(dict(row), rows.features), f"{name}:row {number}"


def _named_classes(row: dict[str, Any], features: Any) -> dict[str, Any]:
    """The hub stores classes as numbers beside a list of names; rows carry the names."""
    return {
        key: features[key].int2str(value)
        if type(features[key]).__name__ == "ClassLabel" and isinstance(value, int) and value >= 0
        else value
        for key, value in row.items()
    }
