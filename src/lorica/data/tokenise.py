"""Tokenise rendered rows, and mark which tokens are labels.

A row is encoded as one text. At each border between two spans the text before it is encoded
alone too: generation will see those tokens. If the row does not begin with them (a token crosses
the border), the row is encoded span by span instead, and counted in a notice. The front tokens
(BOS) are the tokenizer's, unless the text brings its own. Every row ends in EOS, which is a label,
unless the last answer ends in it already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lorica.data.notices import Places
from lorica.data.rendered_row import RenderedRow
from lorica.data.text_encoder import TextEncoder, end_token
from lorica.data.token_boundaries import TokenBoundaries
from lorica.data.unknown_characters import UnknownCharacters


@dataclass(frozen=True)
class Tokens:
    """A row's ids, and its ranges of labels: (start, stop), never token 0."""

    ids: list[int]
    runs: list[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """A row's ids without front and end tokens.

    offsets: the number of ids before each span, and of all. piecewise: each span was encoded
    by itself.
    """

    ids: list[int]
    offsets: list[int]
    piecewise: bool = False


class RowTokeniser:
    """Tokenises rows for a language model, a chunk at a time, and collects notices.

    Raises: DataError if the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any):
        self._eos = end_token(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self._boundaries = TokenBoundaries(tokenizer, self._encoder.ids)
        self._piecewise, self._final_spaces, self._doubled_bos = Places(), 0, Places()
        self._unknown = UnknownCharacters(tokenizer, self._encoder.ids)

    def tokens(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        """The tokens of each row, in order."""
        return self.frame(rows, self.encode(rows))

    def encode(self, rows: Sequence[RenderedRow]) -> list[Encoded]:
        """The ids of each row. Thread-safe: it changes nothing."""
        texts = [row.text for row in rows]
        ids = self._encoder.ids(texts)
        borders = self._border_offsets(rows, texts, ids)
        return [self._encoded(*row) for row in zip(rows, ids, borders, strict=True)]

    def frame(self, rows: Sequence[RenderedRow], encoded: Sequence[Encoded]) -> list[Tokens]:
        """Add front and end tokens to the rows' ids, mark the labels, and count for notices."""
        self._unknown.add(rows, [row.text for row in rows])
        return [self._tokens_of(*pair) for pair in zip(rows, encoded, strict=True)]

    def _border_offsets(
        self, rows: Sequence[RenderedRow], texts: list[str], ids: list[list[int]]
    ) -> list[list[int | None]]:
        """For each border between two spans of each row: the number of tokens before it.

        None if the text before the border has other tokens alone.
        """
        borders = [list(accumulate(len(s.text) for s in row.spans))[:-1] for row in rows]
        known = self._boundaries.tokens_before(texts, ids, borders)
        unknown = [i for i, offsets in enumerate(known) if offsets is None]
        prefixes = iter(self._encoder.ids(texts[i][:at] for i in unknown for at in borders[i]))
        result = [[] if offsets is None else offsets for offsets in known]
        for i in unknown:
            for prefix in (next(prefixes) for _ in borders[i]):
                result[i].append(len(prefix) if ids[i][: len(prefix)] == prefix else None)
        return result

    def _encoded(self, row: RenderedRow, ids: list[int], borders: list[int | None]) -> Encoded:
        if None not in borders:
            return Encoded(ids, [0, *(n for n in borders if n is not None), len(ids)])
        pieces = self._encoder.piecewise([span.text for span in row.spans])
        ends = accumulate(map(len, pieces))
        return Encoded([i for piece in pieces for i in piece], [0, *ends], piecewise=True)

    def take(self) -> Any:
        """What was counted, which is then forgotten, for `merge` in another process."""
        taken = self._piecewise.take(), self._final_spaces, self._doubled_bos.take()
        self._final_spaces = 0
        return *taken, self._unknown.take()

    def merge(self, taken: Any) -> None:
        """Add what another process counted in later rows."""
        piecewise, final_spaces, doubled_bos, unknown = taken
        self._piecewise.merge(piecewise)
        self._final_spaces += final_spaces
        self._doubled_bos.merge(doubled_bos)
        self._unknown.merge(unknown)

    def notices(self) -> list[str]:
        """Notices about all rows."""
        notices = []
        if self._piecewise:
            spaces = f"; {self._final_spaces} of these prompts end in a space, better left out"
            notices.append(
                f"{self._piecewise.count} rows are tokenised in pieces, because a token would "
                f"cross the border of prompt and answer: {self._piecewise}"
                + (spaces if self._final_spaces else "")
            )
        if self._doubled_bos:
            notices.append(
                f"{self._doubled_bos.count} rows began with BOS twice; one is left out: "
                f"{self._doubled_bos}"
            )
        return notices + self._unknown.notices()

    def _tokens_of(self, row: RenderedRow, encoded: Encoded) -> Tokens:
        if encoded.piecewise:
            self._piecewise.add(row.where)
            self._final_spaces += row.spans[0].text.endswith(" ")
        runs: list[tuple[int, int]] = []
        offsets = encoded.offsets
        for span, start, end in zip(row.spans, offsets, offsets[1:], strict=False):
            if span.learned and end > start:
                if runs and runs[-1][1] == start:
                    start = runs.pop()[0]
                runs.append((start, end))
        return self._framed(row, encoded.ids, runs)

    def _framed(self, row: RenderedRow, ids: list[int], runs: list[tuple[int, int]]) -> Tokens:
        """The row with BOS once in front and, if it has labels, EOS as its last label."""
        ids, shift, doubled = self._encoder.with_front(ids, special=row.special)
        if doubled:
            self._doubled_bos.add(row.where)
        # Token 0 is not a label: nothing precedes it.
        runs = [(max(a + shift, 1), b + shift) for a, b in runs if b + shift > 0]
        if runs and not (runs[-1][1] == len(ids) and ids[-1] == self._eos):
            ids = [*ids, self._eos]
            if runs[-1][1] == len(ids) - 1:
                runs[-1] = runs[-1][0], len(ids)
            else:
                runs.append((len(ids) - 1, len(ids)))
        return Tokens(ids, [(a, b) for a, b in runs if b > a])


class ClassifierTokeniser:
    """Tokenises rows for a classifier, with the tokenizer's own special tokens."""

    def __init__(self, tokenizer: Any):
        self._encoder = TextEncoder(tokenizer)
        self._unknown = UnknownCharacters(tokenizer, self._encoder.ids)

    def tokens(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        return self.frame(rows, self.encode(rows))

    def encode(self, rows: Sequence[RenderedRow]) -> list[Encoded]:
        rows_ids = self._encoder.ids([row.text for row in rows], special=True)
        return [Encoded(ids, [0, len(ids)]) for ids in rows_ids]

    def frame(self, rows: Sequence[RenderedRow], encoded: Sequence[Encoded]) -> list[Tokens]:
        self._unknown.add(rows, [row.text for row in rows])
        return [Tokens(row.ids, []) for row in encoded]

    def take(self) -> Any:
        """As `RowTokeniser.take`."""
        return self._unknown.take()

    def merge(self, taken: Any) -> None:
        self._unknown.merge(taken)

    def notices(self) -> list[str]:
        return self._unknown.notices()
