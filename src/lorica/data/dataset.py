"""A sequence of examples: ranges of stored rows, made into `Example` objects on access."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from lorica.data.example import Example
from lorica.data.notices import Places
from lorica.data.token_store import TokenStore


@dataclass(frozen=True, eq=False)
class Dataset(Sequence[Example]):
    """Examples i: the tokens starts[i] to stops[i] of row rows[i] of a store.

    rows, starts, stops: (N,). blocks: several examples may be of one row. classes: the class of
        each of the store's labels; None without classes. truncate: (ids, limit) -> ids, for rows
        of a classifier, whose special tokens stay.
    """

    store: TokenStore
    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    blocks: bool = False
    classes: np.ndarray | None = None
    truncate: Callable[[list[int], int], list[int]] | None = None

    @classmethod
    def whole(cls, store: TokenStore) -> "Dataset":
        """One example for every row of a store, uncut."""
        count = len(store)
        return cls(store, np.arange(count), np.zeros(count, np.int64), store.lengths)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Example | Dataset":
        return self.select(index) if isinstance(index, slice) else self._example(index)

    def _example(self, index: int) -> Example:
        row, start, stop = int(self.rows[index]), int(self.starts[index]), int(self.stops[index])
        label = None if self.classes is None else int(self.classes[self.store.label(row)])
        length = self.store.length(row)
        if self.truncate and stop < length:
            example = self.store.example(row, 0, length, label)
            ids = self.truncate(example.ids, stop)
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

    def select(self, index: "np.ndarray | slice") -> "Dataset":
        """The examples of a mask, of indices or of a slice."""
        return replace(
            self, rows=self.rows[index], starts=self.starts[index], stops=self.stops[index]
        )

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens."""
        return self.stops - self.starts

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) label tokens; the first token of an example is never a label."""
        first = self.store.arrays["starts"][self.rows]
        begin = np.minimum(self.starts + 1, self.stops)
        labels_before = self.store.labels_before
        return labels_before(first + self.stops) - labels_before(first + begin)

    @property
    def conditions(self) -> set[str]:
        """The distinct conditions of the rows."""
        used = np.unique(self.store.arrays["condition"][self.rows])
        return {self.store.meta["conditions"][i] for i in used.tolist() if i >= 0}

    @property
    def contents(self) -> np.ndarray:
        """The content digests of the distinct rows, in order: dtype S16."""
        _, first = np.unique(self.rows, return_index=True)
        return self.store.digests("content", self.rows[np.sort(first)])

    def places(self, numbers: np.ndarray | None = None) -> str:
        """The names of the first few rows, and how many follow. numbers: shown behind each."""
        places = Places()
        for i in range(min(len(self), places.most)):
            places.add(self[i].where + ("" if numbers is None else f" ({numbers[i]})"))
        places.count = len(self)
        return str(places) if places else "none"
