"""Text to token ids, and which of them are learned.

A row is tokenised as one text, and at every border between segments the text up to there is
tokenised alone as well: that is what generation will see. Where the one does not begin with
the other (a token reaches over the border), the row is tokenised segment by segment instead,
and counted. Tokens in front (BOS) are the tokenizer's own, unless the text brings them; EOS
stands at the end of every row and is learned, unless the last answer ends in it already.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lorica.data.rendered import Rendered
from lorica.errors import DataError, listed

CHUNK = 2_000  # texts a call of the tokenizer: bounds the memory of its result


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


def tokenise(rows: list[Rendered], tokenizer: Any) -> tuple[list[Example], list[str]]:
    """Rows of text for a language model: one example each, in order, and named lines.

    Raises: DataError if the tokenizer has no end-of-sequence token.
    """
    eos = end_token(tokenizer)
    texts = Texts(tokenizer)
    whole = texts.ids(row.text for row in rows)
    # For each border between two segments: the ids of all the text before it.
    borders = [list(accumulate(s.text for s in row.segments))[:-1] for row in rows]
    before = iter(texts.ids(text for border in borders for text in border))
    found, apart, twice = [], [], []
    for number, (row, ids, border) in enumerate(zip(rows, whole, borders, strict=True)):
        ends = [next(before) for _ in border]
        if all(ids[: len(end)] == end for end in ends):
            cuts = [0, *(len(end) for end in ends), len(ids)]
        else:
            pieces = texts.piecewise([segment.text for segment in row.segments])
            ids, cuts = [i for p in pieces for i in p], [0, *accumulate(map(len, pieces))]
            apart.append(row)
        learned = [False] * len(ids)
        for segment, start, end in zip(row.segments, cuts, cuts[1:], strict=False):
            learned[start:end] = [segment.learned] * (end - start)
        example, doubled = _framed(
            row,
            number,
            ids,
            learned,
            [] if row.special else texts.front,
            eos,
            tokenizer.bos_token_id,
        )
        found.append(example)
        if doubled:
            twice.append(row.where)
    return found, _lines(apart, twice) + unwritten(rows, tokenizer)


def _lines(apart: list[Rendered], twice: list[str]) -> list[str]:
    lines = []
    if apart:
        spaces = sum(row.segments[0].text.endswith(" ") for row in apart)
        usual = f"; {spaces} of these prompts end in a space, better left out" if spaces else ""
        lines.append(
            f"{len(apart)} rows are tokenised segment by segment, because a token would reach "
            f"over the border of prompt and answer: {listed(row.where for row in apart)}{usual}"
        )
    if twice:
        lines.append(f"{len(twice)} rows began with BOS twice; once is kept: {listed(twice)}")
    return lines


def unwritten(rows: list[Rendered], tokenizer: Any) -> list[str]:
    """A line on the characters of the rows that the tokenizer has no tokens for.

    It drops them, or reads them as unknown, without a word: arithmetic without "=" and "/".
    """
    characters = sorted({c for row in rows for c in set(row.text)} - set(" \t\n\r"))
    lost = set()
    for character, ids in zip(characters, Texts(tokenizer).ids(characters), strict=True):
        unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
        if not character.isspace() and (unknown or not tokenizer.decode(ids).strip()):
            lost.add(character)
    if not lost:
        return []
    hit = [row.where for row in rows if not lost.isdisjoint(row.text)]
    shown = " ".join(sorted(lost)[:12]) + (" ..." if len(lost) > 12 else "")
    what = "characters that the tokenizer cannot write, so they are lost or unknown"
    return [f"{len(hit)} rows hold {what}: {shown} ({listed(hit)})"]


def _framed(
    row: Rendered,
    number: int,
    ids: list[int],
    learned: list[bool],
    front: list[int],
    eos: int,
    bos: int | None,
) -> tuple[Example, bool]:
    """The row with BOS once in front and, if anything is learned, EOS at its end."""
    doubled = False
    if front and ids[: len(front)] != front:
        ids, learned = front + ids, [False] * len(front) + learned
    while bos is not None and bos != eos and ids[:2] == [bos, bos]:
        ids, learned, doubled = ids[1:], learned[1:], True
    if any(learned) and not (learned[-1] and ids[-1] == eos):
        ids, learned = [*ids, eos], [*learned, True]
    if learned:
        learned[0] = False
    example = Example(ids, learned, row.where, source=row, row=number, condition=row.condition)
    return example, doubled


def tokenise_labels(
    rows: list[Rendered], tokenizer: Any, labels: list[str], max_length: int | None = None
) -> list[Example]:
    """Rows for a classifier, with the tokenizer's own special tokens; a row may have no label.

    max_length: cut longer texts so that the special tokens stay; None cuts nothing.
    """
    number_of = {name: i for i, name in enumerate(labels)}
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    found: list[Example] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        ids = tokenizer(
            [row.text for row in part], return_attention_mask=False, verbose=False, **cut
        )["input_ids"]
        for i, (row, one) in enumerate(zip(part, ids, strict=True), start):
            label = None if row.label is None else number_of[row.label]
            found.append(Example(one, [False] * len(one), row.where, label, row, i, row.condition))
    return found


def prompt_ids(rows: list[Rendered], tokenizer: Any) -> list[list[int]]:
    """What generation is given for each row: its prompt's ids, with BOS as in training."""
    texts = Texts(tokenizer)
    found = []
    for row, ids in zip(rows, texts.ids(row.prompt for row in rows), strict=True):
        front = [] if row.special or ids[: len(texts.front)] == texts.front else texts.front
        found.append(front + ids)
    return found


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
    """A tokenizer without its special tokens, and those it puts in front."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = tokenizer("a")["input_ids"]
        at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
        self.front: list[int] = framed[:at]

    def ids(self, texts: Iterable[str]) -> list[list[int]]:
        every, found = list(texts), []
        for start in range(0, len(every), CHUNK):
            found += self._tokenizer(
                every[start : start + CHUNK],
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
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
