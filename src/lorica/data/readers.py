"""The parsers of the file formats: each takes a path and yields (fields, where) pairs.

A file is read a row at a time, so memory holds a line, an element or a Parquet batch of it;
only plain text, and JSON whose rows stand inside an object, are read whole. What is wrong is
collected, and raised once at the file's end: rows are usable when the reader has come to it.

Text is read as UTF-8, strictly: a byte that is none is an error with its offset, because a
replacement character in training data is learned like any other.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lorica.data.charset import encodings
from lorica.data.json_stream import ListReader, RowDecoder
from lorica.data.notices import Notices, Places
from lorica.errors import DataError, MissingError, ResourceError, listed

Pairs = Iterator[tuple[dict[str, Any], str]]
STEP = 1 << 20  # bytes, of what is looked through in pieces
BATCH = 1_000  # rows of a Parquet file at a time


@dataclass
class Reading:
    """What is asked of a reader, and what it notes on its way."""

    limit: int | None = None  # only the first rows
    notices: Notices = field(default_factory=Notices)
    file: BinaryIO | None = None  # text is read from
    done: int = 0  # bytes, where there is no such file

    def position(self) -> int:
        """Bytes of the file that are read."""
        return self.done if self.file is None or self.file.closed else self.file.tell()


@contextmanager
def opened(path: Path, reading: Reading, newline: str) -> Iterator[TextIO]:
    """The file as text without a byte order mark. newline: as for `open`.

    Raises: DataError with byte offset and line if it is not UTF-8, or is empty.
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
        raise not_utf8(path) from error
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(
            f"cannot read {path}: {error.strerror}.", fix="check the file's permissions"
        ) from error


def not_utf8(path: Path) -> DataError:
    """The error that names the first byte which is no UTF-8, by line and offset."""
    offset, line, rest = 0, 1, b""
    with path.open("rb") as file:
        while piece := file.read(STEP):
            data = rest + piece
            try:
                data.decode("utf-8")
                good = len(data)
            except UnicodeDecodeError as error:
                good = error.start
                if len(data) - good >= 4 or error.reason != "unexpected end of data":
                    break
            line += data.count(b"\n", 0, good)
            offset, rest = offset + good, data[good:]
        else:
            data, good = rest, 0
    if not data:
        return DataError(f"{path.name} was changed while it was read.", fix="try again")
    with path.open("rb") as file:
        begin = data.rfind(b"\n", 0, good) + 1 if offset else 0
        file.seek(offset + begin)
        read_as = encodings(file.read(STEP), good - begin)
    likely = next(iter(read_as), "ENCODING")
    return DataError(
        f"{path.name} is not UTF-8.",
        line=line + data.count(b"\n", 0, good),
        byte=f"0x{data[good]:02x} at offset {offset + good:,}",
        **{f"as {name}": repr(text) for name, text in read_as.items()},
        fix=f"save it as UTF-8 from the encoding that reads right: iconv -f {likely} -t utf-8 "
        f"{path.name} > {path.stem}-utf8{path.suffix}",
    )


def read_json(path: Path, reading: Reading) -> Pairs:
    """A list of objects; or one object with a single list in it."""
    wrong = Places()
    decoder = RowDecoder(reading.notices)
    with opened(path, reading, "\n") as file:
        rows = ListReader(file, decoder)
        try:
            elements = rows if rows.is_list else _one_list(path, rows.whole())
            for number, row in enumerate(elements, 1):
                if reading.limit is not None and number > reading.limit:
                    break
                where = f"{path.name}:row {number}"
                if not isinstance(row, dict):
                    wrong.add(f"{where} ({type(row).__name__})")
                elif not wrong:
                    decoder.note(where)
                    yield row, where
        except json.JSONDecodeError as error:
            line, column = rows.place(error)
            lines = error.msg.startswith("Extra data") and not rows.is_list
            raise DataError(
                f"{path.name} is not JSON: {error.msg}.",
                line=line,
                column=column,
                fix="one object a line is JSON Lines: name the file .jsonl"
                if lines
                else "mend the file there",
            ) from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError | UnicodeDecodeError):
                raise
            raise DataError(
                f"{path.name} is not usable JSON: {error}.", fix="mend the file"
            ) from error
    if wrong:
        raise _no_objects(path, wrong)


def _one_list(path: Path, whole: Any) -> list[Any]:
    """The rows: the only list inside an object."""
    if not isinstance(whole, dict):
        raise DataError(
            f"{path.name} holds a {type(whole).__name__}, not a list of objects.",
            fix="write a list of objects, one for each row",
        )
    lists = {key: value for key, value in whole.items() if isinstance(value, list)}
    if len(lists) != 1:
        raise DataError(
            f"{path.name} is one object with {len(lists)} lists in it; which are the rows?",
            keys=listed(whole),
            fix="write the rows as a list of objects, or keep just one list in the object",
        )
    return next(iter(lists.values()))


def read_jsonl(path: Path, reading: Reading) -> Pairs:
    broken, wrong = Places(), Places()
    decoder = RowDecoder(reading.notices)
    rows, first, row = 0, "", None
    # Lines end at "\n" alone: U+2028 and its like may stand inside a JSON string.
    with opened(path, reading, "\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if reading.limit is not None and rows >= reading.limit:
                break
            rows += 1
            first = first or line[:STEP]
            where = f"{path.name}:{number}"
            try:
                row = decoder.decode(line)
            except json.JSONDecodeError as error:
                broken.add(f"line {number} column {error.colno} ({error.msg})")
                continue
            except (ValueError, RecursionError) as error:
                broken.add(f"line {number} ({error})")
                continue
            if not isinstance(row, dict):
                wrong.add(f"{where} ({type(row).__name__})")
            elif not broken and not wrong:
                decoder.note(where)
                yield row, where
    if broken:
        whole = first.lstrip().startswith(("[", "{\n", "{\r"))
        raise DataError(
            f"{path.name} has {broken.count} lines that are not JSON.",
            where=str(broken),
            fix="this looks like one JSON value over several lines: name the file .json"
            if whole
            else "mend these lines; each must be one whole object",
        )
    if wrong:
        raise _no_objects(path, wrong, one_list=rows == 1 and isinstance(row, list))


def _no_objects(path: Path, wrong: Places, one_list: bool = False) -> DataError:
    return DataError(
        f"{path.name} has {wrong.count} rows that are not objects.",
        where=str(wrong),
        fix="this is one JSON list: name the file .json"
        if one_list
        else 'write each row as {"column": value, ...}',
    )


def read_csv(path: Path, reading: Reading) -> Pairs:
    csv.field_size_limit(2**31 - 1)  # its default of 128 KiB refuses long documents
    wrong, rows, start, header = Places(), 0, 1, []
    with opened(path, reading, "") as file:
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
                f"{path.name} is not CSV: {error}.", line=start, fix="mend the quotes there"
            ) from error
    if wrong:
        raise DataError(
            f"{path.name} has {wrong.count} rows with another number of cells than its header.",
            header=f"{len(header)} cells: {listed(header)}",
            where=str(wrong),
            fix='mend these rows; a cell with a comma or a line break needs "quotes"',
        )


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise DataError(
            f"{path.name} has a header with a column "
            + (f"that stands twice: {listed(twice)}." if twice else "without a name."),
            header=listed(header, 8),
            fix="the first line must name every column, each by another name",
        )


def read_parquet(path: Path, reading: Reading) -> Pairs:
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
            for batch in table.iter_batches(batch_size=min(reading.limit or BATCH, BATCH)):
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


def read_text(path: Path, reading: Reading) -> Pairs:
    """A text file is one long row: nothing in it says where a document would end."""
    with opened(path, reading, "\n") as file:
        yield {"text": file.read()}, path.name


READERS: dict[str, Callable[[Path, Reading], Pairs]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
