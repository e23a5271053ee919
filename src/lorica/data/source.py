"""The source of rows: a file, or a data set of the Hugging Face hub.

Every row has the name of its file and its line, so that an error can name them. A path that
exists is a file. A path `owner/name` that does not exist is looked up on the hub, unless its
first part is a folder here (then it is a misspelt file). A single word is never looked up: the
library `datasets` takes "json" or "text" as a request to read all such files in the working
directory.
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
from lorica.data.json_lines import JsonLines
from lorica.data.notices import Notices
from lorica.errors import DataError, MissingError, closest, listed
from lorica.progress import Progress

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    fields: dict[str, Any]
    where: str  # "tickets.jsonl:17"


class Decoded:
    """The decoder of rows that their reader decodes already."""

    def decode(self, rows: Iterable[tuple[Any, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
        yield from rows

    def check(self) -> None:
        pass

    def take(self) -> None:
        pass

    def merge(self, taken: None) -> None:
        pass


class Source:
    """The rows of `config.path`, or the first `config.limit`. Each iteration reads the file again.

    notices: of the last iteration, complete at its end. done, size: bytes read, and in all.

    Raises: DataError if there is no such file. An iteration raises DataError for an invalid or
        empty file, and MissingError if a package for the format is missing.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.path = Path(config.path)
        self._hub = None
        self.size = 0
        if not self.path.exists() and _on_hub(config.path):
            self._hub = _load_from_hub(config)
        else:
            _check_is_file(self.path)
            if config.streaming:
                raise DataError(
                    f"{config.path} is a file, and data.streaming is for data sets of the hub.",
                    fix="leave it out: a file is read a part at a time anyway",
                )
            self.size = self.path.stat().st_size
        self._reading = readers.Reading(config.limit)

    def __iter__(self) -> Iterator[Row]:
        undecoded, rows = self.undecoded(), 0
        decoder = self.decoder()
        for fields, where in decoder.decode(undecoded):
            rows += 1
            yield Row(fields, where)
        decoder.check()
        self.check_rows(rows)

    def undecoded(self) -> Iterator[tuple[Any, Any]]:
        """Begin to read, and return what `decoder` makes rows of: lines of a JSON Lines file as
        (number, text), or rows as (fields, place)."""
        reading = self._reading = readers.Reading(self.config.limit)
        if self._hub is not None:
            return _hub_rows(self._hub, self.config.path)
        suffix = self.path.suffix.lower()
        read = readers.read_lines if suffix == ".jsonl" else readers.READERS[suffix]
        return read(self.path, reading)

    def decoder(self) -> "JsonLines | Decoded":
        """What makes rows of the reading that was begun last."""
        if self._hub is None and self.path.suffix.lower() == ".jsonl":
            return JsonLines(self.path, self.notices)
        return Decoded()

    def check_rows(self, rows: int) -> None:
        """Raises: DataError if an iteration gave no rows."""
        if not rows:
            raise DataError(
                f"{self.config.path} holds no rows.", fix="give a file with at least one row"
            )

    def chunks(self, rows: int) -> Iterator[list[Row]]:
        """The rows in lists of at most `rows`."""
        iterator = iter(self)
        while chunk := list(islice(iterator, rows)):
            yield chunk

    def stamp(self) -> tuple[int, ...]:
        """Changes when the file changes; () without a file."""
        if not self.path.is_file():
            return ()
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    @property
    def notices(self) -> Notices:
        return self._reading.notices

    @property
    def done(self) -> int:
        return self._reading.position()

    def digest(self) -> str:
        """sha256 of the file's bytes; without a file, of the rows as JSON."""
        return digest(self.config, () if self.path.is_file() else self)


def read(config: DataConfig) -> list[Row]:
    """All rows of `config.path`, or the first `config.limit`; at least one.

    Raises: what `Source` does.
    """
    return list(Source(config))


def digest(config: DataConfig, rows: Iterable[Row]) -> str:
    """sha256 of the file's bytes; without a file, of the rows as JSON."""
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


def _check_is_file(path: Path) -> None:
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
        fix = "check the path"
        if len(path.parts) == 1 and not path.suffix:
            fix += "; a data set of the hub is named owner/name"
        raise DataError(f"there is no file {path}.", fix=fix, **facts)
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
    """The first `config.limit` rows of the data set, memory-mapped."""
    try:
        import datasets
    except ImportError as error:
        raise MissingError(
            f"{config.path} is not a file here, and reading the hub needs the package datasets.",
            fix='pip install "lorica[data]", or correct the path',
        ) from error
    name, _, subset = config.path.partition(":")
    try:
        if config.streaming:
            return _stream(datasets, name, subset or None, config)
        rows = datasets.load_dataset(name, subset or None, split=config.split)
        return rows.select(range(min(config.limit or len(rows), len(rows))))
    except Exception as error:  # the library raises a dozen classes, none its own
        raise DataError(
            f"{config.path} is not a file here, and the hub does not give split "
            f"{config.split!r} of a data set of that name.",
            reason=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="check the name, the split and the network; a subset is named owner/name:subset",
        ) from error


def _stream(datasets: Any, name: str, subset: str | None, config: DataConfig) -> Any:
    """The first `config.limit` rows, fetched row by row into a file that is memory-mapped."""
    stream = datasets.load_dataset(name, subset, split=config.split, streaming=True)
    first = stream.take(config.limit)

    def fetch() -> Iterator[dict[str, Any]]:
        with Progress(f"fetching {name}", config.limit) as bar:
            for row in first:
                yield row
                bar.advance()

    return datasets.Dataset.from_generator(fetch, features=stream.features)


def _hub_rows(rows: Any, path: str) -> readers.Rows:
    name = path.partition(":")[0]
    for number, row in enumerate(rows, 1):
        yield _with_class_names(dict(row), rows.features), f"{name}:row {number}"


def _with_class_names(row: dict[str, Any], features: Any) -> dict[str, Any]:
    """The row with class names in place of the hub's numbers. A number below 0 is no class."""
    fields = dict(row)
    for name, value in row.items():
        is_class = type(features[name]).__name__ == "ClassLabel"
        if is_class and type(value) is int and value >= 0:
            fields[name] = features[name].int2str(value)
    return fields
