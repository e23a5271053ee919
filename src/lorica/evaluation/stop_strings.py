"""Texts that end what a base writes, as its generation_config.json names them (stop_strings)."""

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from lorica.base.load import LoadedModel

TOKENS_A_CHARACTER = 4
"""Tokens that one character has at most, where a tokenizer writes bytes."""


class StopStrings:
    """The stop strings of a base; it may have none."""

    def __init__(self, base: LoadedModel):
        config: Any = getattr(base.model, "generation_config", None)
        named = getattr(config, "stop_strings", None)
        several = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        self.strings = [text for text in several if isinstance(text, str) and text]
        self._decode = base.tokenizer.decode

    def criteria(self, width: int) -> list[Any]:
        """What transformers' `generate` asks after each token. width: tokens of the prompts."""
        if not self.strings:
            return []
        reach = TOKENS_A_CHARACTER * max(map(len, self.strings)) + 1

        def ended(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            rows = ids[:, max(width, ids.shape[1] - reach) :].tolist()
            return torch.tensor([self._has(self._text(row)) for row in rows], device=ids.device)

        return [ended]

    def ends(self, tokens: list[int]) -> bool:
        """Whether a stop string is in the text of the tokens."""
        return bool(self.strings) and self._has(self._text(tokens))

    def end(self, tokens: list[int]) -> int:
        """How many of the tokens there are until a stop string is whole; all if none is."""
        if not self.ends(tokens):
            return len(tokens)
        counts = range(1, len(tokens) + 1)
        return 1 + bisect_left(counts, True, key=lambda n: self._has(self._text(tokens[:n])))

    def cut(self, text: str, *, goes_on: bool = False) -> str:
        """The text before the first stop string. goes_on: and before what may become one."""
        found = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)]
        if goes_on:
            held = (
                n for stop in self.strings for n in range(1, len(stop)) if text.endswith(stop[:n])
            )
            return text[: len(text) - max(held, default=0)]
        return text

    def _has(self, text: str) -> bool:
        return any(stop in text for stop in self.strings)

    def _text(self, tokens: list[int]) -> str:
        return self._decode(tokens, clean_up_tokenization_spaces=False)
