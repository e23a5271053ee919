"""Parse JSON from untrusted files, and refuse what neither lorica nor PEFT writes.

`json.loads` accepts duplicate keys (the last one wins), NaN, deep nesting, lone surrogates and
integers of any length. All of them are refused here, so that callers need not check.
"""

import json
from pathlib import Path
from typing import Any

from lorica import plain_files
from lorica.errors import FileError

MAX_DEPTH = 32
MAX_DIGITS = 40


def parse(
    text: str | bytes, *, finite: bool = True, unique: bool = True, depth: int = MAX_DEPTH
) -> Any:
    """Parse UTF-8 text without a byte order mark. Raises: ValueError with the reason.

    finite: refuse NaN and Infinity. unique: refuse duplicate keys. depth: levels that are allowed.
    """
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_unique if unique else None,
            parse_int=_integer,
            parse_constant=_no_constant if finite else None,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {depth}") from None
    check(value, depth)
    return value


def read(
    path: Path, *, finite: bool = True, unique: bool = True, follow: bool = False
) -> dict[str, Any]:
    """Read a JSON object from a regular file. finite, unique: see `parse`; follow: see `open_file`.

    Raises: FileError if the file is missing, not a regular file, cut short, or not a JSON object.
    """
    data = plain_files.read_bytes(path, follow=follow)
    return parse_object(data, path, finite=finite, unique=unique)


def parse_object(
    data: bytes, path: Path, *, finite: bool = True, unique: bool = True
) -> dict[str, Any]:
    """The JSON object that was read from `path`. Raises: FileError if it is none."""
    try:
        value = parse(data, finite=finite, unique=unique)
    except ValueError as error:
        raise FileError(f"{path} cannot be read: {error}.", fix="copy the file anew") from None
    if not isinstance(value, dict):
        raise FileError(
            f"{path} holds {type(value).__name__}, not an object.", fix="copy the file anew"
        )
    return value


def check(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Raises: ValueError if a value is nested too deep, or has text with a lone surrogate."""
    level, depth = [value], 0
    while level:
        if depth > max_depth:
            raise ValueError(f"it is nested deeper than {max_depth}")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += item.keys()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii():
                _check_unicode(item)
        level, depth = below, depth + 1


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        sign = text[error.start]
        raise ValueError(f"it holds {sign!r}, half of a surrogate pair") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _no_constant(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no JSON")
