"""How many tokens of a text stand before a place in it, without tokenising what stands before it.

A pair of symbols that BPE merges lies on one side of a border or reaches over it. Where no token
of the whole text reaches over a border, no merge ever did; the merges before it are then those of
the text before it alone, in the same order, and so are its tokens. This holds for tokenizers that
give BPE the text in one piece, as those of Llama 2 and Mistral do, and for texts without added
tokens, which cut them into pieces. Where a tokenizer makes words first, the words may depend on
what follows.
"""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

OTHER = 1 << 40
"""Length of a token of which no length is known."""


class TokenBoundaries:
    """Counts the tokens before places of a text, where the tokenizer is of this kind."""

    def __init__(self, tokenizer: Any):
        self._front, self._lengths = 0, np.zeros(0, np.int64)
        self._added, self._signs = list[str](), set[str]()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return
        parts = json.loads(backend.to_str())
        front = _in_front(parts)
        self._added = [token["content"] for token in parts["added_tokens"]]
        self._signs = {content[:1] for content in self._added}
        if front is not None:
            self._front, self._lengths = front, np.array(_lengths(parts), np.int64)

    def before(
        self, texts: Sequence[str], ids: Sequence[list[int]], places: Sequence[list[int]]
    ) -> list[list[int | None] | None]:
        """For each text, its tokens before each of its `places`.

        ids: of each whole text. places: characters before them, inside of the text.
        Returns: None for a text of which it cannot be told; None for a place that a token reaches
            over.
        """
        if not len(self._lengths):
            return [None for _ in texts]
        counts = np.array([len(some) for some in ids])
        flat = np.fromiter(chain.from_iterable(ids), np.int64, counts.sum())
        ends, stops = np.cumsum(self._lengths[flat]), np.cumsum(counts)
        found = []
        for text, stop, count, some in zip(texts, stops, counts, places, strict=True):
            own = ends[stop - count : stop] - (ends[stop - count - 1] if stop > count else 0)
            pieces = count == 0 or self._has_added(text)
            found.append(None if pieces else self._before(len(text), own, some))
        return found

    def _before(
        self, size: int, ends: np.ndarray, places: Sequence[int]
    ) -> list[int | None] | None:
        """ends: (tokens,) characters up to the end of each; too many behind one of `OTHER`."""
        total, found = int(ends[-1]), list[int | None]()
        for place in places:
            if not place:
                found.append(0)
                continue
            for target in (self._front + place, total - (size - place)):
                count = int(np.searchsorted(ends, target, side="right"))
                if count and ends[count - 1] == target:
                    found.append(count)
                    break
            else:
                if total != self._front + size:
                    return None
                found.append(None)
        return found

    def _has_added(self, text: str) -> bool:
        """Whether an added token stands in a text, so that it is tokenised in pieces."""
        return any(sign in text for sign in self._signs) and any(t in text for t in self._added)


def _in_front(parts: dict[str, Any]) -> int | None:
    """Characters that the tokenizer puts in front of a text; None: it is not of this kind."""
    model, normalizer = parts["model"], parts["normalizer"] or {"normalizers": []}
    steps: list[dict[str, Any]] = normalizer.get("normalizers", [normalizer])
    front = 0
    for step in steps:
        if step["type"] == "Prepend":
            front += len(step["prepend"])
        elif (
            step["type"] != "Replace"
            or len(step["pattern"].get("String", "")) != 1
            or (len(step["content"]) != 1)
        ):
            return None
    plain = (
        model["type"] == "BPE"
        and parts["pre_tokenizer"] is None
        and not any(
            model.get(key)
            for key in (
                "dropout",
                "ignore_merges",
                "continuing_subword_prefix",
                "end_of_word_suffix",
            )
        )
    )
    words = any(token["single_word"] or token["normalized"] for token in parts["added_tokens"])
    return front if plain and not words and _keeps_all(model) else None


def _keeps_all(model: dict[str, Any]) -> bool:
    """Whether no character is dropped, and the bytes of one stay apart, so that lengths add up."""
    vocabulary, tokens = model["vocab"], {f"<0x{byte:02X}>" for byte in range(256)}
    if any(not tokens.isdisjoint(pair) for pair in model["merges"]):
        return False
    return model["unk_token"] in vocabulary or (
        model["byte_fallback"] and tokens <= vocabulary.keys()
    )


def _lengths(parts: dict[str, Any]) -> list[int]:
    """Characters of each token, by its id; none if most ids are of no token."""
    model, vocabulary = parts["model"], parts["model"]["vocab"]
    added = {token["id"] for token in parts["added_tokens"]}
    ids = {*vocabulary.values(), *added}
    if not ids or max(ids) > 2 * len(ids):
        return []
    lengths = [OTHER] * (1 + max(ids))
    for token, number in vocabulary.items():
        if number not in added and token != model["unk_token"]:
            lengths[number] = len(token)
    if model["byte_fallback"]:  # of the bytes of one character, the first counts
        for byte in range(256):
            if (number := vocabulary.get(f"<0x{byte:02X}>")) is not None:
                lengths[number] = int(not 0x80 <= byte < 0xC0)
    return lengths
