"""Several files as the rows of one training: one store of all rows, and how often each is used.

A file of weight w gives an epoch round(w x n) of its n training rows: each row once for every
whole number in w, and for the rest a random choice of rows, which each epoch draws anew. So weight
1 is every row once, 2 every row twice, and 0.1 a tenth of the rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.pipeline import tokenise_file
from lorica.data.split import split_validation
from lorica.data.token_store import TokenStore
from lorica.data.uncached import Uncached, writer_like
from lorica.errors import DataError

ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Mixture:
    """How often an epoch uses the rows of each file.

    parts: (first training row, the one after the last, rows of an epoch) of each file.
    """

    parts: tuple[tuple[int, int, int], ...]

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(rows for _, _, rows in self.parts)

    def times(self) -> np.ndarray:
        """How often an epoch uses each training row, on average: (training rows,)."""
        parts = np.array(self.parts)
        counts = parts[:, 1] - parts[:, 0]
        return np.repeat(parts[:, 2] / np.maximum(counts, 1), counts)


def tokenise_files_of(
    config: DataConfig, tokenizer: Any, *, seed: int, texts: bool = False
) -> TokenStore:
    """The rows of `config.path`, or of all files of `config.mixture`, tokenised, uncut.

    Raises: DataError if rows cannot be read or rendered, or the files have other formats.
    """
    if not config.mixture:
        return tokenise_file(config, tokenizer, seed=seed, texts=texts)
    stores = []
    for file in config.mixture:
        streaming = config.streaming and not Path(file.path).exists()
        update = {"path": file.path, "mixture": [], "streaming": streaming}
        alone = config.model_copy(update=update)
        stores.append(tokenise_file(alone, tokenizer, seed=seed, texts=texts))
    paths = [file.path for file in config.mixture]
    _check_alike(paths, stores)
    return _joined(paths, stores, seed)


def split_files(
    dataset: Dataset, config: DataConfig, share: float | None, seed: int
) -> tuple[Dataset, Dataset]:
    """(training, validation) examples: the split of each file, in the order of the files."""
    if not config.mixture:
        return split_validation(dataset, share, seed)
    parts = [split_validation(part, share, seed) for part in _parts(dataset)]
    train, validation = (_concatenated(side) for side in zip(*parts, strict=True))
    return train, validation


def mixture_of(train: Dataset, config: DataConfig) -> tuple[Mixture | None, list[str]]:
    """(how often an epoch uses the training rows, notices); None for a single file.

    Raises: DataError if the weights leave no rows.
    """
    if not config.mixture:
        return None, []
    parts, start = [], 0
    for file, part in zip(config.mixture, _parts(train), strict=True):
        stop = start + len(part)
        parts.append((start, stop, round(file.weight * len(part))))
        start = stop
    mixture = Mixture(tuple(parts))
    if not mixture.rows:
        raise DataError("the weights of the files leave no rows.", fix="raise them")
    notices = [
        f"{Path(file.path).name}: an epoch has {rows:,} of its {stop - start:,} training rows"
        f"{', some of them several times' if rows > stop - start else ''} "
        f"(weight {file.weight:g}), {rows / mixture.rows:.1%} of {mixture.rows:,}"
        for file, (start, stop, rows) in zip(config.mixture, parts, strict=True)
    ]
    return mixture, notices


def _parts(dataset: Dataset) -> list[Dataset]:
    """The examples of each file."""
    ends = np.cumsum(dataset.store.meta["files"])
    file = np.searchsorted(ends, dataset.rows, side="right")
    return [dataset.select(file == number) for number in range(len(ends))]


def _concatenated(parts: Sequence[Dataset]) -> Dataset:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "starts", "stops")
    }
    return replace(parts[0], **arrays)


def _check_alike(paths: list[str], stores: list[TokenStore]) -> None:
    """Raises: DataError if the rows of two files cannot be in one training."""
    first = stores[0]
    for path, store in zip(paths, stores, strict=True):
        if store.kind != first.kind:
            raise DataError(
                f"{path} holds {store.kind} rows, and {paths[0]} holds {first.kind} rows.",
                fix="write the rows of all files in one format",
            )
        if bool(store.meta["conditions"]) != bool(first.meta["conditions"]):
            raise DataError(
                f"only one of {paths[0]} and {path} has rows with a condition.",
                fix="give the rows of all files a condition, or of none",
            )


def _joined(paths: list[str], stores: list[TokenStore], seed: int) -> TokenStore:
    """All rows in one store: in memory, or, if they are many, in files without a name."""
    place, writer = Uncached(), writer_like(stores[0], seed)
    names = [Path(path).name for path in paths]
    times = Counter(names)
    try:
        for path, name, store in zip(paths, names, stores, strict=True):
            # Rows of files that have the same name are told apart by the folder.
            folder = f"{Path(path).parent}/" if times[name] > 1 else ""
            for start in range(0, len(store), ROWS_AT_ONCE):
                writer.append(store.chunk(start, min(start + ROWS_AT_ONCE, len(store)), folder))
                place.bound(writer)
            if writer.texts is not None:
                writer.texts += store.texts or []
        digests = " ".join(store.meta["digest"] for store in stores)
        meta = {
            "kind": stores[0].kind,
            "digest": sha256(digests.encode()).hexdigest(),
            "notices": [
                f"{name}: {notice}"
                for name, store in zip(names, stores, strict=True)
                for notice in store.meta["notices"]
            ],
            "prompt_format": stores[0].meta["prompt_format"],
            "files": [len(store) for store in stores],
        }
        return place.commit(writer, meta)
    finally:
        place.discard()
