"""Encoders of conditions: from a text to what the network reads.

task       a learned vector per name         pair  a learned vector per language, two of them
embedding  a linear map of its numbers       text  a linear map of the base's hidden state
                                                   (base.condition_texts)

C conditions   H half of the network's width   N length of an embedding or of a hidden state
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorica.errors import ConfigError, listed
from lorica.methods.hyperlora.conditions import Kind, check_known, pair_of, parse_embedding, words


class Encoder(nn.Module):
    """From conditions to codes, and from codes to (C, H)."""

    def codes(self, conditions: Sequence[str]) -> Tensor:
        """The conditions as a tensor (C, ...). Raises: ConfigError if one is not known."""
        raise NotImplementedError

    def texts_to_encode(self, conditions: Sequence[str]) -> list[str]:
        """The conditions that need a vector from the base and have none yet."""
        return []

    def store_texts(self, vectors: Mapping[str, Tensor]) -> list[str]:
        """Store the vectors (N,). Returns: the texts that are not known from training."""
        return []


class Names(Encoder):
    """Tasks and pairs: indices of words, (C, 1) or (C, 2), -> (C, H)."""

    def __init__(self, kind: Kind, known: Sequence[str], half: int):
        super().__init__()
        self.kind: Kind = kind
        self.known = tuple(known)
        self.index = {word: i for i, word in enumerate(words(kind, known))}
        self.vectors = nn.Embedding(len(self.index), half // 2 if kind == "pair" else half)

    def codes(self, conditions: Sequence[str]) -> Tensor:
        check_known(conditions, self.known)
        split = [pair_of(c) if self.kind == "pair" else (c,) for c in conditions]
        return torch.tensor([[self.index[word] for word in parts] for parts in split])

    def forward(self, codes: Tensor) -> Tensor:
        return self.vectors(codes).flatten(1)


class Vectors(Encoder):
    """Embeddings: (C, N) -> (C, H)."""

    def __init__(self, width: int, half: int):
        super().__init__()
        self.width = width
        self.map = nn.Linear(width, half)

    def codes(self, conditions: Sequence[str]) -> Tensor:
        return torch.tensor([parse_embedding(condition, self.width) for condition in conditions])

    def forward(self, codes: Tensor) -> Tensor:
        return self.map(codes.to(self.map.weight))


class Texts(Vectors):
    """Texts, by the vectors that the base computes for them: (C, N) -> (C, H).

    table: (known texts, N), saved with the adapter; a row of zeros: not encoded yet.
    """

    table: Tensor

    def __init__(self, known: Sequence[str], width: int, half: int):
        super().__init__(width, half)
        self.index = {text: i for i, text in enumerate(known)}
        self.unknown: dict[str, Tensor] = {}
        self.register_buffer("table", torch.zeros(len(known), width))

    def texts_to_encode(self, conditions: Sequence[str]) -> list[str]:
        return [text for text in dict.fromkeys(conditions) if self._vector(text) is None]

    def store_texts(self, vectors: Mapping[str, Tensor]) -> list[str]:
        for text, vector in vectors.items():
            if text in self.index:
                self.table[self.index[text]] = vector
            else:
                self.unknown[text] = vector
        return [text for text in vectors if text not in self.index]

    def codes(self, conditions: Sequence[str]) -> Tensor:
        if missing := self.texts_to_encode(conditions):
            raise ConfigError(
                f"the base has not encoded the condition {listed(map(repr, missing))}.",
                fix="call lorica.base.condition_texts.encode_conditions(model, tokenizer, [...])",
            )
        return torch.stack([self._vector(text) for text in conditions])  # type: ignore[misc]

    def _vector(self, text: str) -> Tensor | None:
        if text in self.index:
            row = self.table[self.index[text]]
            return row if row.any() else None
        return self.unknown.get(text)


def encoder(kind: Kind, known: Sequence[str], width: int | None, half: int) -> Encoder:
    """The encoder of `kind`. Raises: ConfigError if `known` or `width` is needed and missing."""
    if kind != "embedding" and not known:
        raise ConfigError(
            f"hyperlora knows no condition that is a {kind}.", fix="set conditions=[...]"
        )
    if kind in ("task", "pair"):
        return Names(kind, known, half)
    if width is None:
        raise ConfigError(
            f"the width of an {kind} is not known."
            if kind == "embedding"
            else "the width of the base's hidden states is not known.",
            fix="set width, to the length of an embedding; for texts, to the base's hidden_size",
        )
    return Vectors(width, half) if kind == "embedding" else Texts(known, width, half)
