"""JSON read an element at a time, and keys that an object has twice.

`json` reads whole values from a whole text. A list of rows is longer than any row, so its
elements are decoded one by one from a window of the text.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from lorica.data.notices import Notices

WINDOW = 1 << 16  # characters that are read at a time, at first


class RowDecoder:
    """Decodes rows, and names keys that stand twice in one object; the last value counts."""

    def __init__(self, notices: Notices):
        self._notices = notices
        self._repeated: dict[str, None] = {}
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        return self._json.decode(text)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        """(the value that begins at `start`, where it ends)."""
        self._repeated.clear()  # of an attempt that the text was too short for
        return self._json.raw_decode(text, start)

    def note(self, where: str) -> None:
        """Name the keys that stood twice in what was decoded last."""
        if self._repeated:
            keys = ", ".join(map(repr, self._repeated))
            self._notices.add(
                "{n} rows have a key twice in one object, and its last value is taken",
                f"{where} ({keys})",
            )
            self._repeated.clear()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            keys = [key for key, _ in pairs]
            self._repeated.update((key, None) for key in fields if keys.count(key) > 1)
        return fields


class ListReader:
    """The elements of a JSON list in a file, decoded one by one.

    Raises: json.JSONDecodeError; `place` says where in the file that is.
    """

    def __init__(self, file: TextIO, decoder: RowDecoder):
        self._file, self._decoder = file, decoder
        self._text, self._at = "", 0
        self._lines, self._columns = 0, 0  # before the window: line breaks, characters behind them
        self._ended = False
        self.is_list = self._next_character() == "["

    def whole(self) -> Any:
        """The value, when it is no list."""
        self._text += self._file.read()
        return self._decoder.decode(self._text)

    def __iter__(self) -> Iterator[Any]:
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            while True:
                yield self._element()
                mark = self._next_character()
                self._at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", self._text, self._at - 1)
                self._next_character()
        if self._next_character():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def place(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """The line and the column of an error in the file, both from 1."""
        columns = self._columns if error.lineno == 1 else 0
        return self._lines + error.lineno, columns + error.colno

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                if end < len(self._text) or self._ended:  # a number could go on
                    self._at = end
                    return value
            self._read()

    def _next_character(self) -> str:
        """The next one that is no white space, where reading goes on; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read()

    def _read(self) -> None:
        """Drop what was decoded, and read on: at least as much as is held."""
        done, rest = self._text[: self._at], self._text[self._at :]
        if breaks := done.count("\n"):
            self._lines += breaks
            self._columns = len(done) - done.rfind("\n") - 1
        else:
            self._columns += len(done)
        piece = self._file.read(max(WINDOW, len(rest)))
        self._text, self._at, self._ended = rest + piece, 0, not piece
