"""Readers of the file formats: each takes a path and yields (fields, where) pairs.

Files are streamed: memory holds one line, element or Parquet batch. Plain text, and JSON whose
rows are inside an object, are read whole. Errors are collected and raised once, at the end of
the file; the rows are valid only if the reader gets there.

Text is read as strict UTF-8. An invalid byte is an error with its offset, because a replacement
character in training data would be learned like any other.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lorica.data.charset import not_utf8_error
from lorica.data.fields import as_list, as_object
from lorica.data.json_lines import JsonLines, Line, not_objects_error, numbered_lines
from lorica.data.json_stream import JsonListReader, RowDecoder
from lorica.data.notices import Notices, Places
from lorica.errors import DataError, MissingError, ResourceError, listed

Rows = Iterator[tuple[dict[str, Any], str]]
PARQUET_BATCH = 1_000  # rows


@dataclass
class Reading:
    """The limit of a reader, and its progress and notices."""

    limit: int | None = None  # read only this many rows
    notices: Notices = field(default_factory=Notices)
    file: BinaryIO | None = None  # the open file, for formats that are read as a stream
    done: int = 0  # bytes that were read, for other formats

    def position(self) -> int:
        """Bytes of the file that were read."""
        return self.done if self.file is None or self.file.closed else self.file.tell()


@contextmanager
def open_text(path: Path, reading: Reading, newline: str) -> Iterator[TextIO]:
    """Open a file as text, without its byte order mark. newline: as for `open`.

    Raises: DataError if it is empty, or not UTF-8 (with line and byte offset).
    """
    try:
        with (
            path.open("rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file,
        ):
            reading.file = raw
            start = file.tell()
            while (piece := file.read(4_096)) and not piece.strip():
                pass
            if not piece:
                raise DataError(f"{path} is empty.", fix="give a file with at least one row")
            file.seek(start)
            yield file
            reading.done = raw.tell()
    except UnicodeDecodeError as error:
        raise not_utf8_error(path) from error
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(
            f"cannot read {path}: {error.strerror}.", fix="check the file's permissions"
        ) from error


def read_json(path: Path, reading: Reading) -> Rows:
    """A list of objects, or an object that contains exactly one list."""
    wrong = Places()
    decoder = RowDecoder(reading.notices)
    with open_text(path, reading, "\n") as file:
        rows = JsonListReader(file, decoder)
        try:
            elements = rows if rows.is_list else _only_list(path, rows.whole())
            for number, row in enumerate(elements, 1):
                if reading.limit is not None and number > reading.limit:
                    break
                where = f"{path.name}:row {number}"
                fields = as_object(row)
                if fields is None:
                    wrong.add(f"{where} ({type(row).__name__})")
                elif not wrong:
                    decoder.notice_repeated_keys(where)
                    yield fields, where
        except json.JSONDecodeError as error:
            line, column = rows.position(error)
            is_jsonl = error.msg.startswith("Extra data") and not rows.is_list
            raise DataError(
                f"{path.name} is not JSON: {error.msg}.",
                line=line,
                column=column,
                fix="one object a line is JSON Lines: name the file .jsonl"
                if is_jsonl
                else "correct the file there",
            ) from error
        except (DataError, UnicodeDecodeError):
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path.name} is not usable JSON: {error}.", fix="correct the file"
            ) from error
    if wrong:
        raise not_objects_error(path, wrong)


def _only_list(path: Path, value: Any) -> list[Any]:
    """The only list inside an object."""
    fields = as_object(value)
    if fields is None:
        raise DataError(
            f"{path.name} holds a {type(value).__name__}, not a list of objects.",
            fix="write a list of objects, one for each row",
        )
    lists = [item for item in map(as_list, fields.values()) if item is not None]
    if len(lists) != 1:
        raise DataError(
            f"{path.name} is one object with {len(lists)} lists in it; which are the rows?",
            keys=listed(fields),
            fix="write the rows as a list of objects, or leave only one list in the object",
        )
    return lists[0]


def read_jsonl(path: Path, reading: Reading) -> Rows:
    decoder = JsonLines(path, reading.notices)
    yield from decoder.decode(read_lines(path, reading))
    decoder.check()


def read_lines(path: Path, reading: Reading) -> Iterator[Line]:
    """The lines of a JSON Lines file, undecoded."""
    with open_text(path, reading, "\n") as file:
        yield from numbered_lines(file, reading.limit)


def read_csv(path: Path, reading: Reading) -> Rows:
    csv.field_size_limit(2**31 - 1)  # its default of 128 KiB refuses long documents
    wrong, rows, start, header = Places(), 0, 1, []
    with open_text(path, reading, "") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines)
            _check_header(path, header)
            start = lines.line_num + 1
            for cells in lines:
                if reading.limit is not None and rows >= reading.limit:
                    break
                if cells and len(cells) != len(header):
                    wrong.add(f"line {start} ({len(cells)})")
                elif cells:
                    rows += 1
                    if not wrong:
                        yield dict(zip(header, cells, strict=True)), f"{path.name}:{start}"
                start = lines.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path.name} is not CSV: {error}.", line=start, fix="correct the quotes there"
            ) from error
    if wrong:
        raise DataError(
            f"{path.name} has {wrong.count} rows with another number of cells than its header.",
            header=f"{len(header)} cells: {listed(header)}",
            where=str(wrong),
            fix='correct these rows; a cell with a comma or a line break needs "quotes"',
        )


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise DataError(
            f"{path.name} has a header with a column "
            + (f"name that occurs twice: {listed(twice)}." if twice else "without a name."),
            header=listed(header, 8),
            fix="give every column a name of its own in the first line",
        )


def read_parquet(path: Path, reading: Reading) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingError(
            f"reading {path.name} needs the package pyarrow.", fix='pip install "lorica[data]"'
        ) from error
    size, number = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            total = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(
                batch_size=min(reading.limit or PARQUET_BATCH, PARQUET_BATCH)
            ):
                for row in batch.to_pylist():
                    if reading.limit is not None and number >= reading.limit:
                        return
                    number += 1
                    yield row, f"{path.name}:row {number}"
                reading.done = size * number // total
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a readable Parquet file.",
            reason=str(error).strip().partition("\n")[0],
            fix="write or copy the file again",
        ) from error


def read_text(path: Path, reading: Reading) -> Rows:
    """The whole file as one row: nothing in a text file says where a document ends."""
    with open_text(path, reading, "\n") as file:
        yield {"text": file.read()}, path.name


READERS: dict[str, Callable[[Path, Reading], Rows]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
