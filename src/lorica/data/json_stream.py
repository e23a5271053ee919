"""Read a JSON list element by element, and report keys that an object has twice.

The standard library decodes a whole text at once. A data set may be larger than memory, so the
elements are decoded one by one from a window of the text.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from lorica.data.notices import Notices

WINDOW = 1 << 16  # characters that are read at least


class RowDecoder:
    """Decodes rows, and reports keys that occur twice in one object; the last value is used."""

    def __init__(self, notices: Notices):
        self._notices = notices
        self._repeated: dict[str, None] = {}
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        return self._json.decode(text)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        """(the value that begins at `start`, the index behind it)."""
        self._repeated.clear()  # of an earlier attempt on a window that was too short
        return self._json.raw_decode(text, start)

    def notice_repeated_keys(self, where: str) -> None:
        """Add a notice if the row that was decoded last has a key twice."""
        if self._repeated:
            keys = ", ".join(map(repr, self._repeated))
            self._notices.add(
                "{n} rows have a key twice in one object; its last value is used",
                f"{where} ({keys})",
            )
            self._repeated.clear()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            keys = [key for key, _ in pairs]
            self._repeated.update((key, None) for key in fields if keys.count(key) > 1)
        return fields


class JsonListReader:
    """Iterates over the elements of a JSON list in a file.

    Raises: json.JSONDecodeError; `position` says where in the file.
    """

    def __init__(self, file: TextIO, decoder: RowDecoder):
        self._file, self._decoder = file, decoder
        self._text, self._at = "", 0
        self._lines, self._columns = (
            0,
            0,
        )  # before the window: line breaks, characters after the last
        self._ended = False
        self.is_list = self._next_character() == "["

    def whole(self) -> Any:
        """The value of the file, if it is not a list."""
        self._text += self._file.read()
        return self._decoder.decode(self._text)

    def __iter__(self) -> Iterator[Any]:
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            while True:
                yield self._element()
                separator = self._next_character()
                self._at += 1
                if separator == "]":
                    break
                if separator != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", self._text, self._at - 1)
                self._next_character()
        if self._next_character():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def position(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """The (line, column) of an error in the file, both from 1."""
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
                if end < len(self._text) or self._ended:  # else a number may continue
                    self._at = end
                    return value
            self._read_more()

    def _next_character(self) -> str:
        """Skip white space and return the next character; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def _read_more(self) -> None:
        """Drop the decoded text, and read at least as much as the text that is left."""
        decoded, rest = self._text[: self._at], self._text[self._at :]
        if breaks := decoded.count("\n"):
            self._lines += breaks
            self._columns = len(decoded) - decoded.rfind("\n") - 1
        else:
            self._columns += len(decoded)
        piece = self._file.read(max(WINDOW, len(rest)))
        self._text, self._at, self._ended = rest + piece, 0, not piece
