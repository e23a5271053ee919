"""Find characters of the rows that a tokenizer has no tokens for.

A tokenizer drops them, or reads them as unknown, without a warning: arithmetic without "=".
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorica.data.notices import Places
from lorica.data.rendered_row import RenderedRow

SHOWN = 12  # characters in the notice


class UnknownCharacters:
    """Counts rows with characters that the tokenizer has no tokens for."""

    def __init__(self, tokenizer: Any, encode: Callable[[list[str]], list[list[int]]]):
        """encode: gives the token ids of each text."""
        self._tokenizer, self._encode = tokenizer, encode
        self._checked = set(" \t\n\r")
        self._unknown: set[str] = set()
        self._rows = Places()

    def add(self, rows: Sequence[RenderedRow], texts: Sequence[str]) -> None:
        """Check the characters of a chunk of rows. texts: the text of each row."""
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        occurs = np.zeros(sys.maxunicode + 1, bool)
        occurs[codes] = True  # ten times as fast as a set of the characters
        present = set(map(chr, np.flatnonzero(occurs).tolist()))
        if new := sorted(present - self._checked):
            self._checked.update(new)
            self._unknown.update(self._without_tokens(new))
        if unknown := present & self._unknown:
            for row, text in zip(rows, texts, strict=True):
                if not unknown.isdisjoint(text):
                    self._rows.add(row.where)

    def take(self) -> tuple[list[str], tuple[int, list[str]]]:
        """The characters, and the counted rows, which are then forgotten, for `merge` elsewhere."""
        return sorted(self._unknown), self._rows.take()

    def merge(self, taken: tuple[list[str], tuple[int, list[str]]]) -> None:
        """Add what another process counted in later rows."""
        unknown, rows = taken
        self._unknown.update(unknown)
        self._rows.merge(rows)

    def notices(self) -> list[str]:
        if not self._unknown:
            return []
        names = " ".join(sorted(self._unknown)[:SHOWN])
        names += " ..." if len(self._unknown) > SHOWN else ""
        what = "characters that the tokenizer cannot write, so they are lost or unknown"
        return [f"{self._rows.count} rows hold {what}: {names} ({self._rows})"]

    def _without_tokens(self, characters: list[str]) -> list[str]:
        unk, unknown = self._tokenizer.unk_token_id, []
        for character, ids in zip(characters, self._encode(characters), strict=True):
            is_unk = unk is not None and unk in ids
            if not character.isspace() and (is_unk or not self._tokenizer.decode(ids).strip()):
                unknown.append(character)
        return unknown
