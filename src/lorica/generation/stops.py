"""What ends a generated text: stop tokens, and the stop strings of the base."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorica.base.load import LoadedModel
from lorica.data.text_encoder import TextEncoder
from lorica.generation.text_stream import BROKEN, TextStream

TOKENS_PER_CHARACTER = 4
"""The most tokens that one character takes, where a tokenizer has tokens for single bytes."""


@dataclass(frozen=True)
class Stops:
    """Stop tokens and stop strings. A text ends at the first of them, and does not include it."""

    tokenizer: Any
    tokens: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()

    def criteria(self, prompt_width: int) -> list[Any]:
        """transformers' stopping criteria for the stop strings; it knows the tokens already.

        prompt_width: tokens of the padded prompts.
        """
        if not self.strings:
            return []
        window = TOKENS_PER_CHARACTER * max(map(len, self.strings)) + 1

        def has_ended(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            rows = ids[:, max(prompt_width, ids.shape[1] - window) :].tolist()
            return torch.tensor(
                [self._contains_string(self._decode(row)) for row in rows], device=ids.device
            )

        return [has_ended]

    def cut(self, tokens: list[int]) -> list[int]:
        """The tokens up to the one that ends the text, that one included."""
        end = next((i for i, t in enumerate(tokens) if t in self.tokens), len(tokens) - 1)
        tokens = tokens[: end + 1]
        if not self._has_string(tokens):
            return tokens
        counts = range(1, len(tokens) + 1)
        return tokens[: 1 + bisect_left(counts, True, key=lambda n: self._has_string(tokens[:n]))]

    def has_ended(self, tokens: list[int]) -> bool:
        """Whether the tokens end in a stop token, or their text contains a stop string."""
        return tokens[-1] in self.tokens or self._has_string(tokens)

    def text(self, prompt: list[int], new: list[int]) -> str:
        """The text that the new tokens add to the prompt, up to the first stop."""
        new = new[:-1] if new and new[-1] in self.tokens else new
        before, whole = self._decode(prompt), self._decode(prompt + new)
        if BROKEN in whole or not whole.startswith(before):
            stream = self.stream(prompt)
            for token in new:
                stream.push(token)
            stream.end()
            return stream.take()
        text = whole[len(before) :]
        starts = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        return text[: min(starts, default=len(text))]

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """The same text piece by piece, while the tokens are generated."""
        return TextStream(self._decode, prompt, self.strings)

    def _has_string(self, tokens: list[int]) -> bool:
        return bool(self.strings) and self._contains_string(self._decode(tokens))

    def _contains_string(self, text: str) -> bool:
        return any(stop in text for stop in self.strings)

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def stops_of(loaded: LoadedModel, ends_of_turn: Iterable[str] = ()) -> Stops:
    """The stops of a model: EOS, what its generation_config.json names, and `ends_of_turn`.

    ends_of_turn: texts behind an answer; used where they are one special token.
    """
    model: Any = loaded.model
    tokenizer, own = loaded.tokenizer, model.generation_config
    tokens = {tokenizer.eos_token_id, *_as_list(own.eos_token_id)}
    for end in ends_of_turn:
        ids = TextEncoder(tokenizer).ids([end])[0] if end else []
        if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder:
            tokens.add(ids[0])
    return Stops(
        tokenizer,
        tuple(sorted(tokens - {None})),
        tuple(text for text in _as_list(own.stop_strings) if isinstance(text, str) and text),
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
