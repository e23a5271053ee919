"""Rows that are trained or measured on: stretches of stored rows, made examples on access."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from lorica.data.example import Example
from lorica.data.notices import Places
from lorica.data.token_store import TokenStore


@dataclass(frozen=True, eq=False)
class Dataset(Sequence[Example]):
    """Tokens start..stop of rows of a store.

    rows, starts, stops: (N,). blocks: several may be of one row. classes: the class of each of
        the store's labels; None without classes. cut: how a row of a classifier is cut.
    """

    store: TokenStore
    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    blocks: bool = False
    classes: np.ndarray | None = None
    cut: Callable[[list[int], int], list[int]] | None = None

    @classmethod
    def whole(cls, store: TokenStore) -> "Dataset":
        """Every row of a store, uncut."""
        count = len(store)
        return cls(store, np.arange(count), np.zeros(count, np.int64), store.lengths)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Example | Dataset":
        if isinstance(index, slice):
            return self.pick(index)
        row, start, stop = int(self.rows[index]), int(self.starts[index]), int(self.stops[index])
        label = None if self.classes is None else int(self.classes[self.store.label(row)])
        length = self.store.length(row)
        if self.cut and stop < length:
            example = self.store.example(row, 0, length, label)
            ids = self.cut(example.ids, stop)
            return replace(example, ids=ids, learned=[False] * len(ids))
        example = self.store.example(row, start, stop, label)
        if self.blocks and stop - start < length:
            return replace(example, where=f"{example.where} tokens {start}-{stop - 1}")
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def pick(self, which: "np.ndarray | slice") -> "Dataset":
        """Those of a mask, of numbers or of a slice."""
        return replace(
            self, rows=self.rows[which], starts=self.starts[which], stops=self.stops[which]
        )

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens."""
        return self.stops - self.starts

    @property
    def labels(self) -> np.ndarray:
        """(N,) tokens that are learned; the first of an example never is."""
        first = self.store.arrays["starts"][self.rows]
        begin = np.minimum(self.starts + 1, self.stops)
        before = self.store.learned_before
        return before(first + self.stops) - before(first + begin)

    @property
    def conditions(self) -> set[str]:
        """The distinct conditions of the rows."""
        used = np.unique(self.store.arrays["condition"][self.rows])
        return {self.store.meta["conditions"][i] for i in used.tolist() if i >= 0}

    @property
    def contents(self) -> np.ndarray:
        """The digests of the distinct rows' contents, in the order of the rows: dtype S16."""
        _, first = np.unique(self.rows, return_index=True)
        return self.store.digests("content", self.rows[np.sort(first)])

    def places(self, notes: np.ndarray | None = None) -> str:
        """The first few rows by name, and how many more; notes: a number behind each."""
        found = Places()
        for i in range(min(len(self), found.most)):
            found.add(self[i].where + ("" if notes is None else f" ({notes[i]})"))
        found.count = len(self)
        return str(found) if found else "none"
