"""Encode text to token ids, without the special tokens that a tokenizer adds, or with them."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from lorica.data.rendered_row import RenderedRow
from lorica.errors import DataError

TEXTS_PER_CALL = 2_000  # bounds the memory of the tokenizer's result
COMPARED = 100  # texts on which the fast call must agree with the tokenizer's own
PROBED = 1_000  # tokens whose text may show the special tokens around it


class TextEncoder:
    """A tokenizer's plain encoding of texts, and the special tokens that it adds around a text.

    added: the tokens (before, after) a text. front: those before it, which a language model sees.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self.added = _added_tokens(tokenizer)
        self.front = self.added[0]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._bos = None if bos == eos else bos
        self._fast_agrees: dict[bool, bool] = {}  # by `special`

    def with_front(self, ids: list[int], *, special: bool) -> tuple[list[int], int, bool]:
        """(ids with the front tokens and BOS once, how far they moved, whether BOS was doubled).

        special: the text brings its own front tokens.
        """
        shift = 0
        if not special and ids[: len(self.front)] != self.front:
            ids, shift = self.front + ids, len(self.front)
        doubled, bos = 0, self._bos
        while bos is not None and ids[doubled : doubled + 2] == [bos, bos]:
            doubled += 1
        return ids[doubled:], shift - doubled, doubled > 0

    def ids(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text. special: with the tokenizer's special tokens."""
        every, ids = list(texts), []
        for start in range(0, len(every), TEXTS_PER_CALL):
            ids += self._encode(every[start : start + TEXTS_PER_CALL], special)
        return ids

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        """By the Rust backend directly, which is faster, once both gave the same ids."""
        backend = self._backend
        if backend is not None and self._fast_agrees.get(special):
            return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=special)]
        ids = self._tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        if backend is not None and special not in self._fast_agrees and len(texts) > 1:
            fast = backend.encode_batch_fast(texts[:COMPARED], add_special_tokens=special)
            self._fast_agrees[special] = ids[:COMPARED] == [e.ids for e in fast]
        return ids

    def piecewise(self, pieces: list[str]) -> list[list[int]]:
        """The ids of each piece alone, as it is written after other text.

        SentencePiece tokenizers put a space before any text. For the later pieces, a line break
        is encoded before the piece and removed again, where that leaves the other ids unchanged.
        """
        first, *rest = self.ids(pieces)
        (anchor,) = self.ids(["\n"])
        anchored = self.ids("\n" + piece for piece in pieces[1:])
        return [
            first,
            *(
                after[len(anchor) :] if after[: len(anchor)] == anchor else alone
                for alone, after in zip(rest, anchored, strict=True)
            ),
        ]


def backend_of(tokenizer: Any) -> Any:
    """The Rust tokenizer inside a tokenizer of transformers; None for one in Python."""
    return getattr(tokenizer, "backend_tokenizer", None)


def truncate_classified(ids: list[int], limit: int, tokenizer: Any) -> list[int]:
    """The ids of a classifier's text, cut to `limit` on the tokenizer's truncation side.

    The special tokens around the text stay.
    """
    front, back = TextEncoder(tokenizer).added
    text = ids[len(front) : len(ids) - len(back)]
    room = max(limit - len(front) - len(back), 0)
    kept = text[len(text) - room :] if tokenizer.truncation_side == "left" else text[:room]
    return [*ids[: len(front)], *kept, *ids[len(ids) - len(back) :]]


def prompt_ids(rows: list[RenderedRow], tokenizer: Any) -> list[list[int]]:
    """The prompt ids of each row for generation, with BOS as in training."""
    encoder = TextEncoder(tokenizer)
    prompts = encoder.ids(row.prompt for row in rows)
    return [
        encoder.with_front(ids, special=row.special)[0]
        for row, ids in zip(rows, prompts, strict=True)
    ]


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


def _added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds (before, after) a text.

    They show around any text that it has tokens for. A vocabulary of digits has none for letters,
    so several texts are tried.
    """
    vocabulary = (tokenizer.decode([i]) for i in range(min(len(tokenizer), PROBED)))
    for text in chain(("a", "0"), vocabulary):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = tokenizer(text)["input_ids"]
        if plain and not set(plain) & set(tokenizer.all_special_ids):
            at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
            return framed[:at], framed[at + len(plain) :]
    return [], []
