"""Characters of the rows that a tokenizer cannot write.

It drops them, or reads them as unknown, without a word: arithmetic without "=" and "/".
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorica.data.notices import Places
from lorica.data.rendered_row import RenderedRow


class UnknownCharacters:
    """Counts rows with characters that the tokenizer has no tokens for."""

    def __init__(self, tokenizer: Any, ids: Callable[[list[str]], list[list[int]]]):
        """ids: the token ids of each text."""
        self._tokenizer, self._ids = tokenizer, ids
        self._known = set(" \t\n\r")
        self._lost: set[str] = set()
        self._rows = Places()

    def add(self, rows: Sequence[RenderedRow], texts: Sequence[str]) -> None:
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        there = np.zeros(sys.maxunicode + 1, bool)
        there[codes] = True  # ten times as fast as a set of the letters
        present = set(map(chr, np.flatnonzero(there).tolist()))
        if new := sorted(present - self._known):
            self._known.update(new)
            self._lost.update(self._unwritten(new))
        if lost := present & self._lost:
            for row, text in zip(rows, texts, strict=True):
                if not lost.isdisjoint(text):
                    self._rows.add(row.where)

    def notices(self) -> list[str]:
        if not self._lost:
            return []
        shown = " ".join(sorted(self._lost)[:12]) + (" ..." if len(self._lost) > 12 else "")
        what = "characters that the tokenizer cannot write, so they are lost or unknown"
        return [f"{self._rows.count} rows hold {what}: {shown} ({self._rows})"]

    def _unwritten(self, characters: list[str]) -> list[str]:
        unknown, lost = self._tokenizer.unk_token_id, []
        for character, ids in zip(characters, self._ids(characters), strict=True):
            is_unknown = unknown is not None and unknown in ids
            if not character.isspace() and (is_unknown or not self._tokenizer.decode(ids).strip()):
                lost.append(character)
        return lost
