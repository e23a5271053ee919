"""Text to token ids, and which of them are learned.

A row is tokenised as one text, and at every border between segments the text up to there is
tokenised alone as well: that is what generation will see. Where the one does not begin with
the other (a token reaches over the border), the row is tokenised segment by segment instead,
and counted. Tokens in front (BOS) are the tokenizer's own, unless the text brings them; EOS
stands at the end of every row and is learned, unless the last answer ends in it already.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from lorica.data.borders import Borders
from lorica.data.notices import Places
from lorica.data.rendered import Rendered
from lorica.data.unwritten import Unwritten
from lorica.errors import DataError

CHUNK = 2_000  # texts a call of the tokenizer: bounds the memory of its result
TRIED = 100  # texts on which two ways to call it must agree
PROBED = 1_000  # tokens whose text may show the special tokens around it


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    ids: list[int]
    learned: list[bool]  # learned[i]: token i is a label; learned[0] is always False
    where: str
    label: int | None = None
    source: Rendered | None = field(default=None, compare=False, repr=False)
    row: int = field(default=0, compare=False, repr=False)  # number of the row it comes from
    condition: str | None = None

    @property
    def prompt(self) -> list[int]:
        """The ids that generation is given: those before the last learned stretch."""
        end = len(self.learned)
        while end and not self.learned[end - 1]:
            end -= 1
        while end and self.learned[end - 1]:
            end -= 1
        return self.ids[:end]


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


class Tokeniser:
    """Tokenises rows for a language model, a chunk at a time, and counts what there is to say.

    Raises: DataError if the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any):
        self._eos = end_token(tokenizer)
        self._texts, self._borders = Texts(tokenizer), Borders(tokenizer)
        self._apart, self._spaces, self._twice = Places(), 0, Places()
        self._unwritten = Unwritten(tokenizer, self._texts.ids)

    def tokens(self, rows: Sequence[Rendered]) -> list[Tokens]:
        """The tokens of each row, in order."""
        return self.framed(rows, self.encoded(rows))

    def encoded(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """The ids of each row, and of its segments. Counts nothing, so threads may call it."""
        whole = [row.text for row in rows]
        ids = self._texts.ids(whole)
        cuts = self._cuts(rows, whole, ids)
        return [self._encoded(*one) for one in zip(rows, ids, cuts, strict=True)]

    def framed(self, rows: Sequence[Rendered], encoded: Sequence[Encoded]) -> list[Tokens]:
        """The tokens of each row from its ids, in order."""
        self._unwritten.add(rows, [row.text for row in rows])
        return [self._row(row, one) for row, one in zip(rows, encoded, strict=True)]

    def _cuts(
        self, rows: Sequence[Rendered], whole: list[str], ids: list[list[int]]
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

    def _encoded(self, row: Rendered, ids: list[int], before: list[int | None]) -> Encoded:
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

    def _row(self, row: Rendered, encoded: Encoded) -> Tokens:
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

    def _framed(self, row: Rendered, ids: list[int], runs: list[tuple[int, int]]) -> Tokens:
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


class ClassTokeniser:
    """Tokenises rows for a classifier, with the tokenizer's own special tokens."""

    def __init__(self, tokenizer: Any):
        self._texts = Texts(tokenizer)
        self._unwritten = Unwritten(tokenizer, self._texts.ids)

    def tokens(self, rows: Sequence[Rendered]) -> list[Tokens]:
        return self.framed(rows, self.encoded(rows))

    def encoded(self, rows: Sequence[Rendered]) -> list[Encoded]:
        ids = self._texts.ids([row.text for row in rows], special=True)
        return [Encoded(some, [0, len(some)]) for some in ids]

    def framed(self, rows: Sequence[Rendered], encoded: Sequence[Encoded]) -> list[Tokens]:
        self._unwritten.add(rows, [row.text for row in rows])
        return [Tokens(one.ids, []) for one in encoded]

    def notices(self) -> list[str]:
        return self._unwritten.notices()


def class_cut(ids: list[int], limit: int, tokenizer: Any) -> list[int]:
    """A text of a classifier, cut as the tokenizer cuts it: its special tokens stay."""
    front, back = Texts(tokenizer).frame
    head, tail = (ids[: len(front)], ids[len(ids) - len(back) :])
    inside = ids[len(front) : len(ids) - len(back)]
    room = max(limit - len(front) - len(back), 0)
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    return [*head, *(inside[len(inside) - room :] if left else inside[:room]), *tail]


def prompt_ids(rows: list[Rendered], tokenizer: Any) -> list[list[int]]:
    """What generation is given for each row: its prompt's ids, with BOS as in training."""
    texts = Texts(tokenizer)
    every = texts.ids(row.prompt for row in rows)
    return [texts.begun(ids, special=row.special)[0] for row, ids in zip(rows, every, strict=True)]


def end_token(tokenizer: Any) -> int:
    """The id of the end-of-sequence token.

    Raises: DataError if there is none: the model would never learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the base's tokenizer has no end-of-sequence token, so the model could not learn "
            "where an answer ends.",
            fix='set "eos_token" in the base\'s tokenizer_config.json, or choose another base',
        )
    return tokenizer.eos_token_id


class Texts:
    """A tokenizer without its special tokens, and those it puts around a text.

    front: those before it that a language model sees as well; frame: (before, behind).
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.frame = _frame(tokenizer)
        self.front = self.frame[0]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._bos = None if bos == eos else bos
        self._quick: dict[bool, bool] = {}  # special: the library's own call gives the same

    def begun(self, ids: list[int], *, special: bool) -> tuple[list[int], int, bool]:
        """Ids with the tokens in front and BOS once, how far they moved, and if it stood twice.

        special: the text brings its own tokens in front.
        """
        shift = 0
        if not special and ids[: len(self.front)] != self.front:
            ids, shift = self.front + ids, len(self.front)
        doubled, bos = 0, self._bos
        while bos is not None and ids[doubled : doubled + 2] == [bos, bos]:
            doubled += 1
        return ids[doubled:], shift - doubled, doubled > 0

    def ids(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        every, found = list(texts), []
        for start in range(0, len(every), CHUNK):
            found += self._encoded(every[start : start + CHUNK], special)
        return found

    def _encoded(self, texts: list[str], special: bool) -> list[list[int]]:
        """By the library below transformers, without what that adds, once both gave the same."""
        encode = getattr(self._backend, "encode_batch_fast", None)
        if encode is not None and self._quick.get(special):
            return [e.ids for e in encode(texts, add_special_tokens=special)]
        found = self._tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        if special not in self._quick and len(texts) > 1:
            few = texts[:TRIED]
            self._quick[special] = encode is not None and found[:TRIED] == [
                e.ids for e in encode(few, add_special_tokens=special)
            ]
        return found

    def piecewise(self, pieces: list[str]) -> list[list[int]]:
        """Each piece alone, as it stands behind other text.

        SentencePiece tokenizers put a space in front of any text. It is kept from the later
        pieces by a line break before them that is taken off again, where that leaves the rest
        as it was.
        """
        first, *rest = self.ids(pieces)
        (anchor,) = self.ids(["\n"])
        anchored = self.ids("\n" + piece for piece in pieces[1:])
        return [
            first,
            *(
                behind[len(anchor) :] if behind[: len(anchor)] == anchor else alone
                for alone, behind in zip(rest, anchored, strict=True)
            ),
        ]


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a text.

    They are seen around a text that it has tokens for: a vocabulary of digits has none for letters.
    """
    vocabulary = (tokenizer.decode([i]) for i in range(min(len(tokenizer), PROBED)))
    for text in chain(("a", "0"), vocabulary):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = tokenizer(text)["input_ids"]
        if plain and not set(plain) & set(tokenizer.all_special_ids):
            at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
            return framed[:at], framed[at + len(plain) :]
    return [], []
