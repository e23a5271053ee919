"""One pass over a file: rows are read, written as text and tokenised, a chunk at a time.

Reading and rendering are Python; tokenising is done by the library's own threads, outside of
Python's lock. So other threads tokenise chunks while this one prepares the next.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

CHUNK = 1_000  # rows at a time


def tokenise_file(
    config: DataConfig, tokenizer: Any, *, seed: int, kind: str | None = None, texts: bool = False
) -> TokenStore:
    """The tokenised rows of one file, uncut; from the cache where they are in it.

    kind: what the rows must be, when another file has settled that. texts: keep their text.
    Raises: DataError if rows cannot be read, or not be written as text.
    """
    source = Source(config)
    digest = source.digest()
    with ExitStack() as stack:
        entry, lines = None, []
        large = source.size >= cache.FROM or not source.path.is_file()
        if large and not texts and (name := cache.key(config, digest, tokenizer, seed)):
            try:
                entry = stack.enter_context(cache.entry(name))
                if (found := entry.read()) is not None:
                    _check_kind(config, found.kind, kind)
                    return found
                lines = entry.notices
            except OSError as error:
                lines, entry = [_without_cache(error)], None
        found, more = _tokenised(source, digest, tokenizer, kind, texts, seed, entry)
        found.meta["lines"] = [*found.meta["lines"], *lines, *more]
        return found


def _tokenised(
    source: Source,
    digest: str,
    tokenizer: Any,
    kind: str | None,
    texts: bool,
    seed: int,
    entry: cache.Entry | None,
) -> tuple[TokenStore, list[str]]:
    """(the rows, a notice if they could not be written to the cache)."""
    shaped = _shape(source)
    _check_kind(source.config, shaped.kind, kind)

    def fill(writer: StoreWriter) -> dict[str, Any]:
        return {"kind": shaped.kind, "digest": digest, **_fill(writer, source, shaped, tokenizer)}

    def writer() -> StoreWriter:
        small = max(tokenizer.get_vocab().values(), default=0) < 1 << 16
        return StoreWriter("uint16" if small else "int32", seed, texts=texts)

    more: list[str] = []
    if entry is not None:
        try:
            spilled = writer()
            entry.begin(spilled)
            return entry.commit(spilled, fill(spilled)), []
        except OSError as error:
            if isinstance(error, LoricaError):
                raise
            entry.discard()
            more = [_without_cache(error)]
    held = writer()
    return held.store(fill(held)), more


def _without_cache(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"tokenised rows are not kept, {cache.folder()} cannot be used: {reason}"


def _shape(source: Source) -> RowFormat:
    """What the rows are, from the columns of all of them."""
    columns = columns_of((), source.config)
    with Progress(f"reading {source.path.name}", source.size, "B") as bar:
        for chunk in source.chunks(CHUNK):
            columns.add(chunk)
            bar.update(source.done)
    return detect_format(columns, source.config)


def _check_kind(config: DataConfig, found: str, kind: str | None) -> None:
    if kind and (found == "label") != (kind == "label"):
        raise DataError(
            f"{config.path} holds {found} rows, but the training rows are {kind}.",
            fix="give validation rows of the same shape",
        )


def _fill(writer: StoreWriter, source: Source, shaped: RowFormat, tokenizer: Any) -> dict[str, Any]:
    """Give a writer all rows. Returns: notices ("lines"), and the prompt format."""
    renderer = Renderer(shaped, source.config, tokenizer)
    tokeniser = (ClassifierTokeniser if shaped.kind == "label" else RowTokeniser)(tokenizer)
    with Progress(f"tokenising {source.path.name}", source.size, "B") as bar, _uncollected():
        for rows, encoded in _ahead(_rendered(source, renderer), tokeniser.encoded):
            writer.add(rows, tokeniser.framed(rows, encoded))
            bar.update(source.done, f"{writer.rows:,} rows")
    lines = [*source.notices.texts, *shaped.notices, *renderer.finish()]
    form = renderer.prompt_format()
    return {
        "lines": [*lines, *tokeniser.notices()],
        "prompt_format": None if form is None else form.as_dict(),
    }


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python looks for cycles among what was made lately: a quarter of the time, and none here."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rendered(source: Source, renderer: Renderer) -> Iterator[list[RenderedRow]]:
    """The text of the rows in chunks; none any more once a row cannot be used."""
    for chunk in source.chunks(CHUNK):
        rows = renderer.write(chunk)
        if rows and not renderer.failed:
            yield rows


def _ahead(
    chunks: Iterator[list[RenderedRow]], work: Callable[[Sequence[RenderedRow]], list[Encoded]]
) -> Iterator[tuple[list[RenderedRow], list[Encoded]]]:
    """Each chunk with what `work` makes of it, in order; two threads work some chunks ahead."""
    waiting: deque[tuple[list[RenderedRow], Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(2) as pool:  # while one has Python's lock, the other tokenises
        for chunk in chunks:
            waiting.append((chunk, pool.submit(work, chunk)))
            if len(waiting) > 3:
                rows, future = waiting.popleft()
                yield rows, future.result()
        while waiting:
            rows, future = waiting.popleft()
            yield rows, future.result()
