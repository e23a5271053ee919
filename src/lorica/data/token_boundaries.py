"""Count the tokens before a position of a text, without tokenising the text before it.

BPE merges pairs of symbols. If no token of the whole text crosses a position, no merge crossed
it. The merges before the position are then those of the text before it alone, in the same order,
and so the tokens are the same. This holds for tokenizers that give BPE the text in one piece (as
those of Llama 2 and Mistral do), and for texts without added tokens, which cut a text into
pieces. It does not hold for tokenizers that split a text into words first: the words may depend
on the text that follows.

Added tokens cut a text into pieces before anything else, and each piece is tokenised by itself. So
with any tokenizer, the text before a position has the tokens up to the last added token in front
of it, and then those of the rest, which is short: a chat template writes "<|assistant|>\\n" there.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from lorica.data.text_encoder import backend_of

BPE_OPTIONS = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
UNKNOWN_LENGTH = 1 << 40
"""Stands for the length of a token whose length is not known."""
MAX_TAIL, MAX_TAILS = 80, 1_000
"""Characters of a tail that is kept, and how many are."""


class TokenBoundaries:
    """Counts tokens before positions, for the kind of tokenizer and text that allows it.

    encode: gives the token ids of each text, without special tokens around it.
    """

    def __init__(self, tokenizer: Any, encode: Callable[[list[str]], list[list[int]]]):
        self._encode, self._tails = encode, dict[str, list[int]]()
        self._pieces = None
        self._prepended, self._lengths = 0, np.zeros(0, np.int64)
        self._added, self._first_characters = list[str](), set[str]()
        backend = backend_of(tokenizer)
        if backend is None:
            return
        config = json.loads(backend.to_str())
        prepended = _prepended_characters(config)
        self._pieces = _added_token_pattern(config)
        self._added = [token["content"] for token in config["added_tokens"]]
        self._first_characters = {content[:1] for content in self._added}
        if prepended is not None:
            self._prepended, self._lengths = prepended, np.array(_lengths(config), np.int64)

    def tokens_before(
        self, texts: Sequence[str], ids: Sequence[list[int]], positions: Sequence[list[int]]
    ) -> list[list[int | None] | None]:
        """For each text, the number of tokens before each of its `positions` (in characters).

        ids: of each whole text.
        Returns: None for a position that a token crosses; None in place of the list for a text
            whose counts cannot be known.
        """
        if not len(self._lengths):
            rows = zip(texts, ids, positions, strict=True)
            return [self._count_behind_added(*row) for row in rows]
        counts = np.array([len(text_ids) for text_ids in ids])
        flat = np.fromiter(chain.from_iterable(ids), np.int64, counts.sum())
        ends, stops = np.cumsum(self._lengths[flat]), np.cumsum(counts)
        counted = []
        rows = zip(texts, ids, stops, counts, positions, strict=True)
        for text, text_ids, stop, count, at in rows:
            if count == 0 or self._has_added_token(text):
                counted.append(self._count_behind_added(text, text_ids, at))
                continue
            own = ends[stop - count : stop] - (ends[stop - count - 1] if stop > count else 0)
            counted.append(self._count(len(text), own, at))
        return counted

    def _count(
        self, size: int, ends: np.ndarray, positions: Sequence[int]
    ) -> list[int | None] | None:
        """size: characters of the text. ends: (tokens,) characters up to the end of each token;
        they are too large after a token of unknown length."""
        total, counted = int(ends[-1]), list[int | None]()
        for position in positions:
            if not position:
                counted.append(0)
                continue
            for target in (self._prepended + position, total - (size - position)):
                count = int(np.searchsorted(ends, target, side="right"))
                if count and ends[count - 1] == target:
                    counted.append(count)
                    break
            else:
                if total != self._prepended + size:
                    return None
                counted.append(None)
        return counted

    def _count_behind_added(
        self, text: str, ids: list[int], positions: Sequence[int]
    ) -> list[int | None] | None:
        """The counts of one text by its added tokens; None if some position has none before it."""
        if self._pieces is None or not positions:
            return None
        pattern, number_of = self._pieces
        matches = list(pattern.finditer(text))
        numbers = set(number_of.values())
        places = [place for place, number in enumerate(ids) if number in numbers]
        if [ids[place] for place in places] != [number_of[match[0]] for match in matches]:
            return None
        counts: list[int | None] = []
        for position in positions:
            last = sum(match.end() <= position for match in matches) - 1
            if last < 0:
                return None
            # The added token stays in front: some tokenizers write the first piece otherwise.
            tail = self._tail_ids(text[matches[last].start() : position])
            count = places[last] + len(tail)
            counts.append(count if ids[places[last] : count] == tail else None)
        return counts

    def _tail_ids(self, tail: str) -> list[int]:
        """The ids of an added token and the text behind it; short ones are kept."""
        if (known := self._tails.get(tail)) is not None:
            return known
        (ids,) = self._encode([tail])
        if len(tail) <= MAX_TAIL and len(self._tails) < MAX_TAILS:
            self._tails[tail] = ids
        return ids

    def _has_added_token(self, text: str) -> bool:
        """Whether a text contains an added token, so that it is tokenised in pieces."""
        possible = any(character in text for character in self._first_characters)
        return possible and any(token in text for token in self._added)


def _added_token_pattern(config: dict[str, Any]) -> tuple[re.Pattern[str], dict[str, int]] | None:
    """(a pattern of all added tokens, the id of each); None if they take part of the text around
    them, or are looked for in a normalized text."""
    tokens = config["added_tokens"]
    around = any(token.get(side) for token in tokens for side in ("lstrip", "rstrip"))
    words = any(token["single_word"] for token in tokens)
    normalized = config["normalizer"] and any(token["normalized"] for token in tokens)
    if not tokens or around or words or normalized:
        return None
    number_of = {token["content"]: token["id"] for token in tokens}
    longest_first = sorted(number_of, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), number_of


def _prepended_characters(config: dict[str, Any]) -> int | None:
    """The number of characters that the tokenizer prepends to a text; None: not of this kind."""
    model, normalizer = config["model"], config["normalizer"] or {"normalizers": []}
    steps: list[dict[str, Any]] = normalizer.get("normalizers", [normalizer])
    prepended = 0
    for step in steps:
        if step["type"] == "Prepend":
            prepended += len(step["prepend"])
        elif (
            step["type"] != "Replace"
            or len(step["pattern"].get("String", "")) != 1
            or len(step["content"]) != 1
        ):
            return None
    if model["type"] != "BPE" or config["pre_tokenizer"] is not None:
        return None
    if any(model.get(option) for option in BPE_OPTIONS):
        return None
    if any(token["single_word"] or token["normalized"] for token in config["added_tokens"]):
        return None
    return prepended if _lengths_add_up(model) else None


def _lengths_add_up(model: dict[str, Any]) -> bool:
    """Whether the model drops no character, and never merges the bytes of one character."""
    vocabulary, tokens = model["vocab"], {f"<0x{byte:02X}>" for byte in range(256)}
    if any(not tokens.isdisjoint(pair) for pair in model["merges"]):
        return False
    return model["unk_token"] in vocabulary or (
        model["byte_fallback"] and tokens <= vocabulary.keys()
    )


def _lengths(config: dict[str, Any]) -> list[int]:
    """The characters of each token, by its id; empty if most ids have no token."""
    model, vocabulary = config["model"], config["model"]["vocab"]
    added = {token["id"] for token in config["added_tokens"]}
    ids = {*vocabulary.values(), *added}
    if not ids or max(ids) > 2 * len(ids):
        return []
    lengths = [UNKNOWN_LENGTH] * (1 + max(ids))
    for token, number in vocabulary.items():
        if number not in added and token != model["unk_token"]:
            lengths[number] = len(token)
    if model["byte_fallback"]:  # the first byte of a character counts for all of them
        for byte in range(256):
            if (number := vocabulary.get(f"<0x{byte:02X}>")) is not None:
                lengths[number] = int(not 0x80 <= byte < 0xC0)
    return lengths
