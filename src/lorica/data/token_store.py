"""Tokenised rows as flat arrays, in memory or in memory-mapped files: no text, no Python lists.

A row is a range of `ids`; its label tokens are ranges too (`runs`). Everything else of a row is a
number, a digest, or its place in the file as UTF-8. 300,000 rows of 300 tokens take 200 MB.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lorica.data.chunk import Chunk
from lorica.data.example import Example
from lorica.data.rendered_row import RenderedRow
from lorica.data.tokenise import Tokens

CONTENT_BYTES, KEY_BYTES = 16, 32  # of a row's content digest, and of its key in the split
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "starts": ("int64", ()),  # (rows + 1,) where a row's tokens begin in ids
    "runs": ("int64", (2,)),  # (start, stop) in ids of each range of label tokens
    "label": ("int32", ()),  # the number of the label's name; -1: none
    "condition": ("int32", ()),
    "content": ("uint8", (CONTENT_BYTES,)),
    "key": ("uint8", (KEY_BYTES,)),
    "places": ("uint8", ()),  # "tickets.jsonl:17" of every row, as UTF-8
    "place": ("int64", ()),  # (rows + 1,) where a row's place begins in places
}


@dataclass
class Names:
    """Numbers distinct texts in the order of their first appearance."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str | None) -> int:
        return -1 if name is None else self.numbers.setdefault(name, len(self.numbers))


@dataclass(frozen=True)
class TokenStore:
    """The tokenised rows of one file, uncut.

    arrays: ids, and those of COLUMNS. meta: "kind", "labels" and "conditions" (names), "lines"
        (notices), "digest" (of the file), "prompt_format". texts: kept for evaluation only.
    """

    arrays: Mapping[str, np.ndarray]
    meta: dict[str, Any]
    texts: list[RenderedRow] | None = None

    def __len__(self) -> int:
        return len(self.arrays["starts"]) - 1

    @property
    def kind(self) -> str:
        return self.meta["kind"]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens."""
        return np.diff(self.arrays["starts"])

    def length(self, row: int) -> int:
        start, stop = self.arrays["starts"][row : row + 2].tolist()
        return stop - start

    def label(self, row: int) -> int:
        """The number of the row's label in meta["labels"]."""
        return int(self.arrays["label"][row])

    def digests(self, name: str, rows: np.ndarray) -> np.ndarray:
        """ "content" or "key" of rows, as byte strings of one width."""
        picked = np.ascontiguousarray(self.arrays[name][rows])
        return picked.view(f"S{picked.shape[1]}").ravel()

    def labels_before(self, token: np.ndarray) -> np.ndarray:
        """The number of label tokens before each of these indices into ids."""
        runs = self.arrays["runs"]
        if not len(runs):
            return np.zeros(np.shape(token), np.int64)
        total = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])])
        run = np.searchsorted(runs[:, 0], token, side="right")  # ranges that begin at or before
        last = np.maximum(run - 1, 0)
        excess = np.maximum(runs[last, 1] - token, 0)  # the part of the last range after the index
        return total[run] - np.where(run > 0, excess, 0)

    def where(self, row: int) -> str:
        start, stop = self.arrays["place"][row : row + 2]
        return bytes(self.arrays["places"][start:stop]).decode()

    def chunk(self, start: int, stop: int, folder: str = "") -> Chunk:
        """Rows start to stop, for another writer. folder: written before their places."""
        arrays = self.arrays
        begins, places = arrays["starts"][start : stop + 1], arrays["place"][start : stop + 1]
        first, last = np.searchsorted(arrays["runs"][:, 0], begins[[0, -1]])
        runs = arrays["runs"][first:last]
        row_of = np.searchsorted(begins, runs[:, 0], side="right") - 1
        where = (
            [(folder + self.where(row)).encode() for row in range(start, stop)] if folder else []
        )
        names = {
            key: [None if i < 0 else self.meta[f"{key}s"][i] for i in arrays[key][start:stop]]
            for key in ("label", "condition")
        }
        return Chunk(
            ids=arrays["ids"][begins[0] : begins[-1]],
            lengths=np.diff(begins),
            runs=runs - begins[row_of][:, None],
            run_counts=np.bincount(row_of, minlength=stop - start),
            content=arrays["content"][start:stop].tobytes(),
            key=arrays["key"][start:stop].tobytes(),
            places=b"".join(where) or arrays["places"][places[0] : places[-1]].tobytes(),
            place_lengths=np.array([len(w) for w in where]) if where else np.diff(places),
            labels=names["label"],
            conditions=names["condition"],
        )

    def example(self, row: int, start: int, stop: int, label: int | None) -> Example:
        """Tokens start to stop of a row as an example; the first of them is not a label."""
        first = int(self.arrays["starts"][row])
        ids = self.arrays["ids"][first + start : first + stop].tolist()
        learned = [False] * len(ids)
        runs, begin, end = self.arrays["runs"], first + start, first + stop
        number = int(np.searchsorted(runs[:, 1], begin, side="right")) if len(runs) else 0
        while number < len(runs) and runs[number, 0] < end:
            a, b = max(int(runs[number, 0]), begin), min(int(runs[number, 1]), end)
            learned[a - begin : b - begin] = [True] * (b - a)
            number += 1
        if learned:
            learned[0] = False
        condition = int(self.arrays["condition"][row])
        return Example(
            ids,
            learned,
            self.where(row),
            label,
            None if self.texts is None else self.texts[row],
            row,
            None if condition < 0 else self.meta["conditions"][condition],
        )


class Column:
    """An array that grows, in memory; after `spill`, in a file."""

    def __init__(self, dtype: str, shape: tuple[int, ...] = ()):
        self.dtype, self.shape = np.dtype(dtype), shape
        self._parts: list[np.ndarray] = []
        self._file: BinaryIO | None = None
        self.bytes = 0

    def append(self, values: Any) -> None:
        part = np.asarray(values, self.dtype).reshape(-1, *self.shape)
        self.bytes += part.nbytes
        if self._file is None:
            self._parts.append(part)
        else:
            self._file.write(part.tobytes())

    def spill(self, path: Path) -> None:
        """Write the values so far, and all later ones, to a file."""
        self._file = path.open("xb")
        for part in self._parts:
            self._file.write(part.tobytes())
        self._parts = []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def array(self) -> np.ndarray:
        return np.concatenate(self._parts or [np.empty((0, *self.shape), self.dtype)])


class StoreWriter:
    """Collects tokenised rows into a store.

    ids: dtype of the token ids. seed: of the validation split. texts: keep the rows' text.
    """

    def __init__(self, ids: str, seed: int, *, texts: bool = False):
        self.columns = {"ids": Column(ids)}
        self.columns |= {name: Column(*rest) for name, rest in COLUMNS.items()}
        self.columns["starts"].append([0])
        self.columns["place"].append([0])
        self.labels, self.conditions = Names(), Names()
        self.texts: list[RenderedRow] | None = [] if texts else None
        self._seed = f"{seed}\0".encode()
        self._tokens = self._place_bytes = self.rows = 0

    @property
    def bytes(self) -> int:
        return sum(column.bytes for column in self.columns.values())

    def add(self, rows: Sequence[RenderedRow], tokens: Sequence[Tokens]) -> None:
        self.append(self.arrays_of(rows, tokens))
        if self.texts is not None:
            self.texts += rows

    def arrays_of(self, rows: Sequence[RenderedRow], tokens: Sequence[Tokens]) -> Chunk:
        """A chunk for `append`, of this writer or of its copy in another process."""
        contents = [content(row) for row in rows]
        # Rows made from one conversation share a prefix: they stay on one side of the split.
        groups = [r.group.encode() or c for r, c in zip(rows, contents, strict=True)]
        places = [row.where.encode() for row in rows]
        return Chunk(
            ids=np.fromiter(
                chain.from_iterable(t.ids for t in tokens),
                self.columns["ids"].dtype,
                sum(len(t.ids) for t in tokens),
            ),
            lengths=np.fromiter((len(t.ids) for t in tokens), np.int64, len(tokens)),
            runs=np.array([r for t in tokens for r in t.runs], np.int64).reshape(-1, 2),
            run_counts=np.fromiter((len(t.runs) for t in tokens), np.int64, len(tokens)),
            content=b"".join(
                hashlib.blake2b(c, digest_size=CONTENT_BYTES).digest() for c in contents
            ),
            key=b"".join(hashlib.sha256(self._seed + g).digest() for g in groups),
            places=b"".join(places),
            place_lengths=np.fromiter(map(len, places), np.int64, len(places)),
            labels=[row.label for row in rows],
            conditions=[row.condition for row in rows],
        )

    def append(self, chunk: Chunk) -> None:
        columns = self.columns
        ends = self._tokens + np.cumsum(chunk.lengths)
        stops = self._place_bytes + np.cumsum(chunk.place_lengths)
        row_starts = np.repeat(ends - chunk.lengths, chunk.run_counts)
        columns["ids"].append(chunk.ids)
        columns["starts"].append(ends)
        columns["runs"].append(chunk.runs + row_starts[:, None])
        columns["label"].append([self.labels.number(label) for label in chunk.labels])
        columns["condition"].append([self.conditions.number(c) for c in chunk.conditions])
        columns["content"].append(np.frombuffer(chunk.content, np.uint8))
        columns["key"].append(np.frombuffer(chunk.key, np.uint8))
        columns["places"].append(np.frombuffer(chunk.places, np.uint8))
        columns["place"].append(stops)
        self._tokens, self._place_bytes = int(ends[-1]), int(stops[-1])
        self.rows += len(ends)

    def store(self, meta: dict[str, Any]) -> TokenStore:
        """The collected rows as a store in memory."""
        arrays = {name: column.array() for name, column in self.columns.items()}
        return TokenStore(arrays, self.meta(meta), self.texts)

    def meta(self, more: dict[str, Any]) -> dict[str, Any]:
        names = {"labels": list(self.labels.numbers), "conditions": list(self.conditions.numbers)}
        return {**names, **more}


def content(row: RenderedRow) -> bytes:
    """The bytes that equal rows share: those of its spans, label and condition."""
    condition = [] if row.condition is None else [row.condition]
    parts = [*(span.text for span in row.spans), row.label or "", *condition]
    return "\x1f".join(parts).encode()


def open_store(folder: Path) -> TokenStore:
    """Open the store in a folder, memory-mapped, and check its digests.

    Raises: OSError, ValueError, KeyError, TypeError if it is damaged.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in {"ids": (meta["ids"], ()), **COLUMNS}.items():
        path = folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"][name]:
                raise ValueError(f"{name} was changed")
        if not path.stat().st_size:
            arrays[name] = np.empty((0, *shape), dtype)
            continue
        arrays[name] = np.asarray(np.memmap(path, dtype, mode="r")).reshape(-1, *shape)
    return TokenStore(arrays, meta)


def finish_store(folder: Path, writer: StoreWriter, meta: dict[str, Any]) -> None:
    """Close the files that a writer spilled to a folder, and write the meta.json of the store."""
    sums = {}
    for name, column in writer.columns.items():
        column.close()
        with (folder / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    plain = writer.meta({**meta, "ids": writer.columns["ids"].dtype.name, "sha256": sums})
    (folder / "meta.json").write_text(json.dumps(plain), encoding="utf-8")
