"""Text to token ids by a tokenizer, with and without the special tokens it puts around a text."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from lorica.data.rendered_row import RenderedRow
from lorica.errors import DataError

CHUNK = 2_000  # texts a call of the tokenizer: bounds the memory of its result
TRIED = 100  # texts on which two ways to call it must agree
PROBED = 1_000  # tokens whose text may show the special tokens around it


def class_cut(ids: list[int], limit: int, tokenizer: Any) -> list[int]:
    """A text of a classifier, cut as the tokenizer cuts it: its special tokens stay."""
    front, back = TextEncoder(tokenizer).frame
    head, tail = (ids[: len(front)], ids[len(ids) - len(back) :])
    inside = ids[len(front) : len(ids) - len(back)]
    room = max(limit - len(front) - len(back), 0)
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    return [*head, *(inside[len(inside) - room :] if left else inside[:room]), *tail]


def prompt_ids(rows: list[RenderedRow], tokenizer: Any) -> list[list[int]]:
    """What generation is given for each row: its prompt's ids, with BOS as in training."""
    texts = TextEncoder(tokenizer)
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


class TextEncoder:
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
