"""Tokenise one file: read, render and tokenise its rows in chunks, through the cache.

What follows: data/load.py cuts rows to the limit and splits off the validation rows, data/batch.py
makes batches of them, and training/step.py computes their loss.

Reading and rendering are Python code. Tokenising runs in the tokenizer library, which releases
Python's lock: other threads tokenise earlier chunks while this one renders the next. For a large
file, several processes do all of it, each a chunk at a time, with the same result.
"""

import gc
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lorica.data import cache
from lorica.data.config import DataConfig
from lorica.data.rendered_row import RenderedRow
from lorica.data.row_format import RowFormat, columns_of, detect_format
from lorica.data.source import Source
from lorica.data.stages import Stages, Undecoded
from lorica.data.token_store import StoreWriter, TokenStore
from lorica.data.tokenise import Encoded
from lorica.data.uncached import Uncached
from lorica.data.workers import Workers
from lorica.errors import DataError, LoricaError, ResourceError
from lorica.progress import Progress

CHUNK = 1_000  # rows
WORKERS_FROM_BYTES = 16 << 20  # of a smaller file, starting processes takes longer than it saves
MAX_WORKERS = 16  # by default: one process reads for all of them


def tokenise_file(
    config: DataConfig, tokenizer: Any, *, seed: int, kind: str | None = None, texts: bool = False
) -> TokenStore:
    """The tokenised rows of one file, uncut; from the cache if they are in it.

    kind: the format of the training rows, which these rows must match. texts: keep their text.
    Raises: DataError if rows cannot be read, or cannot be rendered.
    """
    source = Source(config)
    stamp = source.stamp()
    job = _Job(source, source.digest(), tokenizer, kind, texts, seed, stamp)
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
    stamp: tuple[int, ...]
    notices: list[str] = field(default_factory=list)

    def run(self, entry: cache.Entry | None) -> TokenStore:
        """The rows, in the cache entry if there is one; elsewhere if that fails."""
        if entry is not None:
            try:
                return self._write(entry)
            except LoricaError:
                raise
            except OSError as error:
                self.notices.append(_without_cache(error))
            finally:
                entry.discard()
        place = Uncached()
        try:
            return self._write(place)
        except LoricaError:
            raise
        except OSError as error:
            raise ResourceError(
                f"the tokenised rows of {self.source.path.name} can be kept neither in the cache "
                f"nor in the folder for temporary files: {error.strerror or error}.",
                fix="set XDG_CACHE_HOME, or TMPDIR, to a folder on a disk with room",
            ) from error
        finally:
            place.discard()

    def _write(self, place: "cache.Entry | Uncached") -> TokenStore:
        """The rows, in one reading of the file; in a second one if its beginning misleads."""
        row_format = self._format_of_beginning()
        while True:
            _check_kind(self.source.config, row_format.kind, self.kind)
            writer = self._writer()
            place.begin(writer)
            undecoded = self.source.undecoded()
            stages = Stages(self.source, row_format, self.tokenizer, writer)
            self._run_stages(stages, writer, undecoded, place)
            whole = stages.finish_reading()
            if whole.kind == row_format.kind:
                meta = stages.finish(whole)
                self._check_unchanged()
                return place.commit(writer, {**meta, "digest": self.digest})
            row_format = whole
            place.discard()

    def _writer(self) -> StoreWriter:
        small = max(self.tokenizer.get_vocab().values(), default=0) < 1 << 16
        return StoreWriter("uint16" if small else "int32", self.seed, texts=self.texts)

    def _format_of_beginning(self) -> RowFormat:
        """The format of the first rows; that of all rows if the first have none."""
        config, beginning = self.source.config, list(islice(self.source, CHUNK))
        try:
            return detect_format(columns_of(beginning, config), config)
        except DataError:
            return detect_format(columns_of(self.source, config), config)

    def _run_stages(
        self,
        stages: Stages,
        writer: StoreWriter,
        undecoded: Iterator[tuple[Any, Any]],
        place: "cache.Entry | Uncached",
    ) -> None:
        """Give the writer all rows."""
        source, chunks = self.source, _chunks_of(undecoded)
        workers = 1 if self.texts else workers_of(source)
        with Progress(f"tokenising {source.path.name}", source.size, "B") as bar, _gc_disabled():
            if workers > 1:
                # The first rows decide what the copies have in common: see `TextEncoder`.
                chunks = _first_here(stages, chunks)
                done = _in_processes(stages, chunks, workers)
            else:
                done = _in_threads(stages, chunks)
            for _ in done:
                place.bound(writer)
                bar.update(source.done, f"{writer.rows:,} rows")

    def _check_unchanged(self) -> None:
        """Raises: DataError if the file is not the one that was read at first."""
        if self.source.stamp() != self.stamp:
            raise DataError(
                f"{self.source.path} was changed while it was read.",
                fix="wait until it is complete, and start again",
            )


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


def workers_of(source: Source) -> int:
    """How many processes tokenise a source: data.workers, by default by its size."""
    if source.config.workers is not None:
        return source.config.workers
    if source.size < WORKERS_FROM_BYTES or sys.platform != "linux":
        return 1
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def _chunks_of(undecoded: Iterator[tuple[Any, Any]]) -> Iterator[Undecoded]:
    while chunk := list(islice(undecoded, CHUNK)):
        yield chunk


def _first_here(stages: Stages, chunks: Iterator[Undecoded]) -> Iterator[Undecoded]:
    """The chunks but the first, which goes through the stages here."""
    if first := next(chunks, None):
        rows = stages.render(first)
        stages.write(rows, stages.encode(rows))
    return chunks


def _in_processes(stages: Stages, chunks: Iterator[Undecoded], count: int) -> Iterator[None]:
    """Take the chunks through all stages, in `count` processes."""
    with Workers(count, stages.work) as workers:
        for chunk, result in workers.map(chunks):
            if result is None:  # values that are not plain, such as a date in a Parquet file
                rows = stages.render(chunk)
                stages.write(rows, stages.encode(rows))
            else:
                stages.merge(*result)
            yield


def _in_threads(stages: Stages, chunks: Iterator[Undecoded]) -> Iterator[None]:
    """Take the chunks through all stages here. Two threads encode up to three chunks ahead."""
    pending: deque[tuple[list[RenderedRow], Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(2) as pool:  # one tokenises while the other holds Python's lock
        for chunk in chunks:
            rows = stages.render(chunk)
            pending.append((rows, pool.submit(stages.encode, rows)))
            if len(pending) > 3:
                rows, future = pending.popleft()
                stages.write(rows, future.result())
                yield
        while pending:
            rows, future = pending.popleft()
            stages.write(rows, future.result())
            yield
