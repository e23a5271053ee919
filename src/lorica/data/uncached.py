"""Tokenised rows that are not cached: in memory, or, if they are many, in files without a name."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lorica.data.token_store import StoreWriter, TokenStore, finish_store, open_store

MAX_MEMORY = 256 << 20  # bytes; of more rows, the arrays are mapped from files


def writer_like(store: TokenStore, seed: int) -> StoreWriter:
    """An empty writer for rows like those of a store."""
    return StoreWriter(store.arrays["ids"].dtype.name, seed, texts=store.texts is not None)


class Uncached:
    """Takes the place of a cache entry. Its methods raise OSError."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def begin(self, writer: StoreWriter) -> None:
        """A writer begins in memory."""

    def bound(self, writer: StoreWriter) -> None:
        """Make a writer with many rows write them, and all later ones, to files."""
        if self._folder is None and writer.bytes > MAX_MEMORY:
            self._folder = Path(tempfile.mkdtemp(prefix="lorica-"))
            for name, column in writer.columns.items():
                column.spill(self._folder / name)

    def commit(self, writer: StoreWriter, meta: dict[str, Any]) -> TokenStore:
        """The rows. Their files are deleted; what is mapped stays until the process ends."""
        if self._folder is None:
            return writer.store(meta)
        finish_store(self._folder, writer, meta)
        store = open_store(self._folder)
        self.discard()
        return store

    def discard(self) -> None:
        """Delete the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
