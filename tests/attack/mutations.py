"""Change one place of a JSON document, or its text, in every way that a reader may stumble over."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "text": "x",
    "empty text": "",
    "number in text": "64",
    "zero": 0,
    "minus one": -1,
    "one": 1,
    "2**31": 2**31,
    "10**12": 10**12,
    "10**30": 10**30,
    "fraction": 4.9,
    "1e300": 1e300,
    "list": [],
    "list of one": [1],
    "list of texts": ["x", "x"],
    "object": {},
    "object of one": {"x": 1},
    "deep": DEEP,
    "long text": "x" * 300_000,
    "NUL": "a\0b",
    "surrogate": "\ud800",
    "path": "../outside/file",
    "regex": "(a+)+$",
}
TEXTS: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2].encode(),
    "NUL": lambda text: b"\0" * 100,
    "a number": lambda text: b"1",
    "null": lambda text: b"null",
    "a list": lambda text: b"[]",
    "an empty object": lambda text: b"{}",
    "no UTF-8": lambda text: b"\xff\xfe" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "very deep": lambda text: b'{"a":' * 100_000,
    "deep lists": lambda text: b"[" * 900 + b"]" * 900,
    "a long number": lambda text: b'{"a": ' + b"9" * 100_000 + b"}",
    "a key twice": lambda text: text.replace("{", '{"format": 1, "format": 2,', 1).encode(),
    "5 MB of blanks": lambda text: text.encode() + b" " * 5_000_000,
    "a half pair": lambda text: text.replace("{", '{"\\ud800": "\\udc00",', 1).encode(),
}


def places(value: Any, deepest: int = 3, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of a document; of long lists and objects the first few entries."""
    if at:
        yield at
    if deepest and isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 60 else keys[:3]:
            yield from places(value[key], deepest - 1, (*at, key))


def of_values(file: Path, good: Path, every: int = 1) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what writes it) for each place and value, and each place removed.

    every: take one of so many, at another offset for each place.
    """
    document = json.loads((good / file).read_text(encoding="utf-8"))
    number = 0
    for place in places(document):
        for name in [*VALUES, "removed"]:
            number += 1
            if number % every == 0:
                yield f"{file}: {'.'.join(map(str, place))[:80]} {name}", _writer(file, place, name)


def of_text(file: Path, good: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    text = (good / file).read_text(encoding="utf-8")
    for name, change in TEXTS.items():
        yield f"{file}: {name}", lambda c=change: file.write_bytes(c(text))


def _writer(file: Path, place: tuple[Any, ...], name: str) -> Callable[[], object]:
    def write() -> None:
        document = json.loads(file.read_text(encoding="utf-8"))
        node = document
        for key in place[:-1]:
            node = node[key]
        if name == "removed":
            del node[place[-1]]
        else:
            node[place[-1]] = VALUES[name]
        file.write_text(json.dumps(document))
        sign(file)

    return write


def sign(file: Path) -> None:
    """Bring the digests that a manifest or checkpoint keeps of `file` up to date."""
    from lorica.formats import commit

    for name in ("manifest.json", "state.json"):
        note = file.with_name(name)
        if note.is_file() and note != file:
            document = json.loads(note.read_text())
            if file.name in document["files"]:
                document["files"][file.name] = commit.digest(file)
                note.write_text(json.dumps(document))
