"""Tokenise one file: read, render and tokenise its rows in chunks, through the cache.

What follows: data/load.py cuts rows to the limit and splits off the validation rows, data/batch.py
makes batches of them, and training/step.py computes their loss.

Reading and rendering are Python code. Tokenising runs in the tokenizer library, which releases
Python's lock: other threads tokenise earlier chunks while this one renders the next.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from lorica.data import cache
from lorica.data.config import DataConfig
from lorica.data.render import Renderer
from lorica.data.rendered_row import RenderedRow
from lorica.data.row_format import RowFormat, columns_of, detect_format
from lorica.data.source import Source
from lorica.data.token_store import StoreWriter, TokenStore
from lorica.data.tokenise import ClassifierTokeniser, Encoded, RowTokeniser
from lorica.errors import DataError, LoricaError
from lorica.progress import Progress

CHUNK = 1_000  # rows


def tokenise_file(
    config: DataConfig, tokenizer: Any, *, seed: int, kind: str | None = None, texts: bool = False
) -> TokenStore:
    """The tokenised rows of one file, uncut; from the cache if they are in it.

    kind: the format of the training rows, which these rows must match. texts: keep their text.
    Raises: DataError if rows cannot be read, or cannot be rendered.
    """
    source = Source(config)
    job = _Job(source, source.digest(), tokenizer, kind, texts, seed)
    large = source.size >= cache.MIN_FILE_BYTES or not source.path.is_file()
    key = cache.cache_key(config, job.digest, tokenizer, seed) if large and not texts else None
    with ExitStack() as stack:
        entry = None
        if key:
            try:
                entry = stack.enter_context(cache.locked_entry(key))
                if (store := entry.read()) is not None:
                    _check_kind(config, store.kind, kind)
                    return store
                job.notices += entry.notices
            except OSError as error:
                job.notices.append(_without_cache(error))
                entry = None
        store = job.run(entry)
        store.meta["notices"] += job.notices
        return store


@dataclass
class _Job:
    """Tokenises the rows of one file. notices: on the cache."""

    source: Source
    digest: str
    tokenizer: Any
    kind: str | None
    texts: bool
    seed: int
    notices: list[str] = field(default_factory=list)

    def run(self, entry: cache.Entry | None) -> TokenStore:
        """The rows, written to the cache entry if there is one; in memory if that fails."""
        row_format = self._detect_format()
        _check_kind(self.source.config, row_format.kind, self.kind)
        if entry is not None:
            try:
                writer = self._writer()
                entry.begin(writer)
                return entry.commit(writer, self._fill(writer, row_format))
            except LoricaError:
                raise
            except OSError as error:
                entry.discard()
                self.notices.append(_without_cache(error))
        writer = self._writer()
        return writer.store(self._fill(writer, row_format))

    def _writer(self) -> StoreWriter:
        small = max(self.tokenizer.get_vocab().values(), default=0) < 1 << 16
        return StoreWriter("uint16" if small else "int32", self.seed, texts=self.texts)

    def _detect_format(self) -> RowFormat:
        """The format of the rows, from the columns of all of them."""
        source = self.source
        columns = columns_of((), source.config)
        with Progress(f"reading {source.path.name}", source.size, "B") as bar:
            for chunk in source.chunks(CHUNK):
                columns.add(chunk)
                bar.update(source.done)
        return detect_format(columns, source.config)

    def _fill(self, writer: StoreWriter, row_format: RowFormat) -> dict[str, Any]:
        """Give the writer all rows. Returns: the meta data of the store."""
        source = self.source
        renderer = Renderer(row_format, source.config, self.tokenizer)
        classifier = row_format.kind == "label"
        tokeniser = (ClassifierTokeniser if classifier else RowTokeniser)(self.tokenizer)
        chunks = _rendered_chunks(source, renderer)
        with Progress(f"tokenising {source.path.name}", source.size, "B") as bar, _gc_disabled():
            for rows, encoded in _map_ahead(chunks, tokeniser.encode):
                writer.add(rows, tokeniser.frame(rows, encoded))
                bar.update(source.done, f"{writer.rows:,} rows")
        notices = [*source.notices.texts, *row_format.notices, *renderer.finish()]
        prompt_format = renderer.prompt_format()
        return {
            "kind": row_format.kind,
            "digest": self.digest,
            "notices": [*notices, *tokeniser.notices()],
            "prompt_format": None if prompt_format is None else prompt_format.as_dict(),
        }


def _without_cache(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"tokenised rows are not cached, {cache.folder()} cannot be used: {reason}"


def _check_kind(config: DataConfig, kind: str, training_kind: str | None) -> None:
    if training_kind and (kind == "label") != (training_kind == "label"):
        raise DataError(
            f"{config.path} holds {kind} rows, but the training rows are {training_kind}.",
            fix="give validation rows of the same format",
        )


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable the cycle collector: it took a quarter of the time, and there are no cycles here."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rendered_chunks(source: Source, renderer: Renderer) -> Iterator[list[RenderedRow]]:
    """The text of the rows in chunks; after an unusable row, rows are only checked."""
    for chunk in source.chunks(CHUNK):
        rows = renderer.render(chunk)
        if rows and not renderer.failed:
            yield rows


def _map_ahead(
    chunks: Iterator[list[RenderedRow]],
    encode: Callable[[Sequence[RenderedRow]], list[Encoded]],
) -> Iterator[tuple[list[RenderedRow], list[Encoded]]]:
    """Each chunk with its encoding, in order. Two threads encode up to three chunks ahead."""
    pending: deque[tuple[list[RenderedRow], Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(2) as pool:  # one tokenises while the other holds Python's lock
        for chunk in chunks:
            pending.append((chunk, pool.submit(encode, chunk)))
            if len(pending) > 3:
                rows, future = pending.popleft()
                yield rows, future.result()
        while pending:
            rows, future = pending.popleft()
            yield rows, future.result()
