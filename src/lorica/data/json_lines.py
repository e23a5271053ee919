"""JSON Lines: the lines of a file in order, and the rows of lines, which any process can decode."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lorica.data.fields import as_list, as_object
from lorica.data.json_stream import RowDecoder
from lorica.data.notices import Notices, Places
from lorica.errors import DataError

Line = tuple[int, str]
"""(number in the file, text)"""


def numbered_lines(file: TextIO, limit: int | None) -> Iterator[Line]:
    """The lines that are not blank, the first `limit` of them.

    Lines end at "\\n" alone: U+2028 and its like may stand inside a JSON string.
    """
    rows = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        if limit is not None and rows >= limit:
            break
        rows += 1
        yield number, line


class JsonLines:
    """Decodes lines, and collects those that are not rows, for one error about all of them."""

    def __init__(self, path: Path, notices: Notices):
        self.notices = notices
        self._path, self._decoder = path, RowDecoder(notices)
        self._invalid, self._wrong = Places(), Places()
        self._rows, self._is_list, self._looks_like_json = 0, False, False

    def decode(self, lines: Iterable[Line]) -> Iterator[tuple[dict[str, Any], str]]:
        """(fields, place) of each line; nothing more after a line that is no row."""
        for number, line in lines:
            if not self._rows:
                self._looks_like_json = line.lstrip().startswith(("[", "{\n", "{\r"))
            self._rows += 1
            where = f"{self._path.name}:{number}"
            try:
                row = self._decoder.decode(line)
            except json.JSONDecodeError as error:
                self._invalid.add(f"line {number} column {error.colno} ({error.msg})")
                continue
            except (ValueError, RecursionError) as error:
                self._invalid.add(f"line {number} ({error})")
                continue
            fields = as_object(row)
            if fields is None:
                self._wrong.add(f"{where} ({type(row).__name__})")
                self._is_list = as_list(row) is not None
            elif not self._invalid and not self._wrong:
                self._decoder.notice_repeated_keys(where)
                yield fields, where

    def check(self) -> None:
        """Raises: DataError if some lines are not rows."""
        if self._invalid:
            raise DataError(
                f"{self._path.name} has {self._invalid.count} lines that are not JSON.",
                where=str(self._invalid),
                fix="this looks like one JSON value over several lines: name the file .json"
                if self._looks_like_json
                else "correct these lines; each must be one whole object",
            )
        if self._wrong:
            raise not_objects_error(
                self._path, self._wrong, is_json=self._rows == 1 and self._is_list
            )

    def take(self) -> Any:
        """What was collected, which is then forgotten, for `merge` in another process."""
        taken = self._invalid.take(), self._wrong.take(), self._rows, self.notices.take()
        self._rows = 0
        return taken

    def merge(self, taken: Any) -> None:
        """Add what another process collected in later lines."""
        invalid, wrong, rows, notices = taken
        self._invalid.merge(invalid)
        self._wrong.merge(wrong)
        self._rows += rows
        self.notices.merge(notices)


def not_objects_error(path: Path, wrong: Places, is_json: bool = False) -> DataError:
    return DataError(
        f"{path.name} has {wrong.count} rows that are not objects.",
        where=str(wrong),
        fix="this is one JSON list: name the file .json"
        if is_json
        else 'write each row as {"column": value, ...}',
    )
