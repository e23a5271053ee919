"""The parsers of the file formats: each takes a path and gives (fields, where) pairs.

Text is read as UTF-8, strictly: a byte that is none is an error with its offset, because a
replacement character in training data is learned like any other.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.errors import DataError, MissingError, ResourceError, listed

Pairs = list[tuple[dict[str, Any], str]]


def text_of(path: Path) -> str:
    """The file's text without a byte order mark.

    Raises: DataError with byte offset and line if it is not UTF-8, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResourceError(
            f"cannot read {path}: {error.strerror}.", fix="check the file's permissions"
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a mark, the offset counts from behind it.
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise DataError(
            f"{path.name} is not UTF-8.",
            line=data.count(b"\n", 0, at) + 1,
            byte=f"0x{data[at]:02x} at offset {at:,}",
            fix=f"save it as UTF-8, e.g. iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty.", fix="give a file with at least one row")
    return text


def read_json(path: Path, limit: int | None) -> Pairs:
    text = text_of(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        lines = error.msg.startswith("Extra data") and text.lstrip().startswith("{")
        raise DataError(
            f"{path.name} is not JSON: {error.msg}.",
            line=error.lineno,
            column=error.colno,
            fix="one object a line is JSON Lines: name the file .jsonl"
            if lines
            else "mend the file there",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not usable JSON: {error}.", fix="mend the file") from error
    rows = _one_list(path, whole)
    _objects(path, [(row, f"{path.name}:row {i}") for i, row in enumerate(rows, 1)])
    return [(row, f"{path.name}:row {i}") for i, row in enumerate(rows[:limit], 1)]


def _one_list(path: Path, whole: Any) -> list[Any]:
    """The rows: the value itself, or the only list inside an object."""
    if isinstance(whole, list):
        return whole
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


def read_jsonl(path: Path, limit: int | None) -> Pairs:
    found: Pairs = []
    broken: list[str] = []
    text = text_of(path)
    # Not splitlines: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if limit is not None and len(found) + len(broken) >= limit:
            break
        try:
            found.append((json.loads(line), f"{path.name}:{number}"))
        except json.JSONDecodeError as error:
            broken.append(f"line {number} column {error.colno} ({error.msg})")
        except (ValueError, RecursionError) as error:
            broken.append(f"line {number} ({error})")
    if broken:
        whole = text.lstrip().startswith(("[", "{\n", "{\r"))
        raise DataError(
            f"{path.name} has {len(broken)} lines that are not JSON.",
            where=listed(broken),
            fix="this looks like one JSON value over several lines: name the file .json"
            if whole
            else "mend these lines; each must be one whole object",
        )
    _objects(path, found)
    return found


def _objects(path: Path, found: list[tuple[Any, str]]) -> None:
    wrong = [f"{where} ({type(row).__name__})" for row, where in found if not isinstance(row, dict)]
    if wrong:
        whole = (
            path.suffix.lower() == ".jsonl" and len(found) == 1 and isinstance(found[0][0], list)
        )
        raise DataError(
            f"{path.name} has {len(wrong)} rows that are not objects.",
            where=listed(wrong),
            fix="this is one JSON list: name the file .json"
            if whole
            else 'write each row as {"column": value, ...}',
        )


def read_csv(path: Path, limit: int | None) -> Pairs:
    text = text_of(path)
    csv.field_size_limit(2**31 - 1)  # its default of 128 KiB refuses long documents
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: Pairs = []
    wrong: list[str] = []
    start = 1
    try:
        header = next(lines)
        _check_header(path, header)
        start = lines.line_num + 1
        for cells in lines:
            if limit is not None and len(found) >= limit:
                break
            if cells and len(cells) != len(header):
                wrong.append(f"line {start} ({len(cells)})")
            elif cells:
                found.append((dict(zip(header, cells, strict=True)), f"{path.name}:{start}"))
            start = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path.name} is not CSV: {error}.", line=start, fix="mend the quotes there"
        ) from error
    if wrong:
        raise DataError(
            f"{path.name} has {len(wrong)} rows with another number of cells than its header.",
            header=f"{len(header)} cells: {listed(header)}",
            where=listed(wrong),
            fix='mend these rows; a cell with a comma or a line break needs "quotes"',
        )
    return found


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise DataError(
            f"{path.name} has a header with a column "
            + (f"that stands twice: {listed(twice)}." if twice else "without a name."),
            header=listed(header, 8),
            fix="the first line must name every column, each by another name",
        )


def read_parquet(path: Path, limit: int | None) -> Pairs:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingError(
            f"reading {path.name} needs the package pyarrow.", fix='pip install "lorica[data]"'
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
        rows = (table if limit is None else table.slice(0, limit)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a readable Parquet file.",
            reason=str(error).strip().partition("\n")[0],
            fix="write or copy the file again",
        ) from error
    return [(row, f"{path.name}:row {i}") for i, row in enumerate(rows, 1)]


def read_text(path: Path, limit: int | None) -> Pairs:
    """A text file is one long row: nothing in it says where a document would end."""
    return [({"text": text_of(path)}, path.name)]


READERS: dict[str, Callable[[Path, int | None], Pairs]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
