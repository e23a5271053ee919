"""What happens to a chunk of rows: decode, render, tokenise, and make flat arrays of it.

A process may do all of it, for chunks of its own. What the stages count for notices and errors is
then taken from them after each chunk, and merged in the order of the chunks.
"""

from collections.abc import Sequence
from typing import Any

from lorica.data.chunk import Chunk
from lorica.data.render import Renderer
from lorica.data.rendered_row import RenderedRow
from lorica.data.row_format import RowFormat, columns_of, detect_format
from lorica.data.source import Row, Source
from lorica.data.token_store import StoreWriter
from lorica.data.tokenise import ClassifierTokeniser, Encoded, RowTokeniser

Undecoded = list[tuple[Any, Any]]


class Stages:
    """The stages of one reading of a source, whose rows go to a writer."""

    def __init__(self, source: Source, row_format: RowFormat, tokenizer: Any, writer: StoreWriter):
        self.source, self.row_format, self._writer = source, row_format, writer
        self._decoder = source.decoder()
        self._columns = columns_of((), source.config)
        self._renderer = Renderer(row_format, source.config, tokenizer)
        kind = ClassifierTokeniser if row_format.kind == "label" else RowTokeniser
        self._tokeniser = kind(tokenizer)
        self._rows, self._is_worker = 0, False

    def render(self, undecoded: Undecoded) -> list[RenderedRow]:
        """The texts of a chunk; none after a row that cannot be used: others are only checked."""
        rows = [Row(*pair) for pair in self._decoder.decode(undecoded)]
        self._rows += len(rows)
        self._columns.add(rows)
        rendered = self._renderer.render(rows)
        return [] if self._renderer.failed else rendered

    def encode(self, rows: Sequence[RenderedRow]) -> list[Encoded]:
        """The ids of each row. Thread-safe."""
        return self._tokeniser.encode(rows) if rows else []

    def write(self, rows: list[RenderedRow], encoded: Sequence[Encoded]) -> None:
        if rows:
            self._writer.add(rows, self._tokeniser.frame(rows, encoded))

    def work(self, undecoded: Undecoded) -> tuple[Any, list[bytes]]:
        """All stages of a chunk, in a process of its own: what `merge` takes."""
        if not self._is_worker:
            self._is_worker = True
            self.take()  # what the parent had counted before the fork is its own
        rows = self.render(undecoded)
        if not rows:
            return [self.take(), {}], []
        tokens = self._tokeniser.frame(rows, self.encode(rows))
        chunk = self._writer.arrays_of(rows, tokens)
        names = {"labels": chunk.labels, "conditions": chunk.conditions}
        return [self.take(), names], chunk.as_bytes()

    def take(self) -> Any:
        """What was counted, which is then forgotten."""
        parts = self._decoder, self._columns, self._renderer, self._tokeniser
        taken = [part.take() for part in parts], self._rows
        self._rows = 0
        return taken

    def merge(self, counted: Any, arrays: list[bytes]) -> None:
        """Write the rows of another process, and add what it counted."""
        taken, names = counted
        if arrays:
            dtype = self._writer.columns["ids"].dtype
            self._writer.append(Chunk.from_bytes(arrays, dtype, **names))
        (of_decoder, of_columns, of_renderer, of_tokeniser), rows = taken
        self._decoder.merge(of_decoder)
        self._columns.merge(of_columns)
        self._renderer.merge(of_renderer)
        self._tokeniser.merge(of_tokeniser)
        self._rows += rows

    def finish_reading(self) -> RowFormat:
        """The format of all rows. Raises: DataError if the file cannot be read."""
        self._decoder.check()
        self.source.check_rows(self._rows)
        return detect_format(self._columns, self.source.config)

    def finish(self, row_format: RowFormat) -> dict[str, Any]:
        """The meta data of the rows. Raises: DataError for rows that cannot be used."""
        rendered = self._renderer.finish()
        notices = [*self.source.notices.texts, *row_format.notices, *rendered]
        prompt_format = self._renderer.prompt_format()
        return {
            "kind": row_format.kind,
            "notices": [*notices, *self._tokeniser.notices()],
            "prompt_format": None if prompt_format is None else prompt_format.as_dict(),
        }
