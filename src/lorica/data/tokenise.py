"""Text to token ids, and which of them are learned.

A row is tokenised as one text, and at every border between segments the text up to there is
tokenised alone as well: that is what generation will see. Where the one does not begin with
the other (a token reaches over the border), the row is tokenised segment by segment instead,
and counted. Tokens in front (BOS) are the tokenizer's own, unless the text brings them; EOS
stands at the end of every row and is learned, unless the last answer ends in it already.
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
    """A row's ids, and the runs of them that are learned: (first, last + 1), never token 0."""

    ids: list[int]
    runs: list[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """A row's ids, and how many stand before each segment and behind the last.

    apart: each segment was tokenised by itself.
    """

    ids: list[int]
    cuts: list[int]
    apart: bool = False


class RowTokeniser:
    """Tokenises rows for a language model, a chunk at a time, and counts what there is to say.

    Raises: DataError if the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any):
        self._eos = end_token(tokenizer)
        self._texts, self._borders = TextEncoder(tokenizer), TokenBoundaries(tokenizer)
        self._apart, self._spaces, self._twice = Places(), 0, Places()
        self._unwritten = UnknownCharacters(tokenizer, self._texts.ids)

    def tokens(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        """The tokens of each row, in order."""
        return self.framed(rows, self.encoded(rows))

    def encoded(self, rows: Sequence[RenderedRow]) -> list[Encoded]:
        """The ids of each row, and of its segments. Counts nothing, so threads may call it."""
        whole = [row.text for row in rows]
        ids = self._texts.ids(whole)
        cuts = self._cuts(rows, whole, ids)
        return [self._encoded(*one) for one in zip(rows, ids, cuts, strict=True)]

    def framed(self, rows: Sequence[RenderedRow], encoded: Sequence[Encoded]) -> list[Tokens]:
        """The tokens of each row from its ids, in order."""
        self._unwritten.add(rows, [row.text for row in rows])
        return [self._row(row, one) for row, one in zip(rows, encoded, strict=True)]

    def _cuts(
        self, rows: Sequence[RenderedRow], whole: list[str], ids: list[list[int]]
    ) -> list[list[int | None]]:
        """For each row and border between two of its segments: how many tokens stand before it.

        None where the text before it alone has other tokens.
        """
        borders = [list(accumulate(len(s.text) for s in row.segments))[:-1] for row in rows]
        found = self._borders.before(whole, ids, borders)
        asked = [i for i, cuts in enumerate(found) if cuts is None]
        alone = iter(self._texts.ids(whole[i][:place] for i in asked for place in borders[i]))
        cuts = [[] if known is None else known for known in found]
        for i in asked:
            for before in (next(alone) for _ in borders[i]):
                cuts[i].append(len(before) if ids[i][: len(before)] == before else None)
        return cuts

    def _encoded(self, row: RenderedRow, ids: list[int], before: list[int | None]) -> Encoded:
        if None not in before:
            return Encoded(ids, [0, *(cut for cut in before if cut is not None), len(ids)])
        pieces = self._texts.piecewise([segment.text for segment in row.segments])
        ends = accumulate(map(len, pieces))
        return Encoded([i for piece in pieces for i in piece], [0, *ends], apart=True)

    def notices(self) -> list[str]:
        """Notices about all rows."""
        lines = []
        if self._apart:
            usual = f"{self._spaces} of these prompts end in a space, better left out"
            lines.append(
                f"{self._apart.count} rows are tokenised segment by segment, because a token would "
                f"reach over the border of prompt and answer: {self._apart}"
                + (f"; {usual}" if self._spaces else "")
            )
        if self._twice:
            lines.append(
                f"{self._twice.count} rows began with BOS twice; once is kept: {self._twice}"
            )
        return lines + self._unwritten.notices()

    def _row(self, row: RenderedRow, encoded: Encoded) -> Tokens:
        ids, cuts = encoded.ids, encoded.cuts
        if encoded.apart:
            self._apart.add(row.where)
            self._spaces += row.segments[0].text.endswith(" ")
        runs: list[tuple[int, int]] = []
        for segment, start, end in zip(row.segments, cuts, cuts[1:], strict=False):
            if segment.learned and end > start:
                if runs and runs[-1][1] == start:
                    start = runs.pop()[0]
                runs.append((start, end))
        return self._framed(row, ids, runs)

    def _framed(self, row: RenderedRow, ids: list[int], runs: list[tuple[int, int]]) -> Tokens:
        """The row with BOS once in front and, if anything is learned, EOS at its end."""
        ids, shift, doubled = self._texts.begun(ids, special=row.special)
        if doubled:
            self._twice.add(row.where)
        # The first token is no label: nothing stands before it.
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
        self._texts = TextEncoder(tokenizer)
        self._unwritten = UnknownCharacters(tokenizer, self._texts.ids)

    def tokens(self, rows: Sequence[RenderedRow]) -> list[Tokens]:
        return self.framed(rows, self.encoded(rows))

    def encoded(self, rows: Sequence[RenderedRow]) -> list[Encoded]:
        ids = self._texts.ids([row.text for row in rows], special=True)
        return [Encoded(some, [0, len(some)]) for some in ids]

    def framed(self, rows: Sequence[RenderedRow], encoded: Sequence[Encoded]) -> list[Tokens]:
        self._unwritten.add(rows, [row.text for row in rows])
        return [Tokens(one.ids, []) for one in encoded]

    def notices(self) -> list[str]:
        return self._unwritten.notices()
