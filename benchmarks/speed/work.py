"""The model, the rows and the batches: the same in every process, from a seed.

The model is a Llama with random weights: what a step costs does not depend on them. The rows are
as long as Alpaca's, as far as its card tells: a template of 33 tokens (45 with an input), then an
instruction, an input, an answer of log-normal lengths; the answer is what is learned.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

SHORT, LONG, SHARED = 33, 45, 28
"""Tokens of the template without and with an input, and those that both begin with."""


@dataclass(frozen=True)
class Shape:
    """A Llama's: S has 58 million parameters."""

    layers: int = 8
    width: int = 512
    mlp: int = 1376
    heads: int = 8
    vocabulary: int = 32_000

    def config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )

    def model(self, dtype: str) -> Any:
        """With weights from one seed."""
        import torch
        from transformers import LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(self.config()).to(getattr(torch, dtype)).train()


@dataclass(frozen=True)
class Row:
    """ids: token ids. answer: where the part that is learned begins."""

    ids: list[int]
    answer: int

    @property
    def labels(self) -> list[int]:
        return [-100] * self.answer + self.ids[self.answer :]


def rows(count: int, seed: int = 0, *, vocabulary: int = 32_000, longest: int = 512) -> list[Row]:
    """Rows of Alpaca's lengths. Two templates, which begin alike."""
    draw = random.Random(seed)
    template = [draw.randrange(3, vocabulary) for _ in range(SHARED)]
    short, long = (
        [*template, *(draw.randrange(3, vocabulary) for _ in range(n - SHARED))]
        for n in (SHORT, LONG)
    )

    def words(median: float, spread: float) -> list[int]:
        n = max(1, round(draw.lognormvariate(math.log(median), spread)))
        return [draw.randrange(3, vocabulary) for _ in range(n)]

    found = []
    for _ in range(count):
        asked = words(12, 0.45)
        prompt = [*long, *asked, *words(14, 0.8)] if draw.random() < 0.4 else [*short, *asked]
        ids = [*prompt, *words(42, 0.95)][:longest]
        found.append(Row(ids, min(len(prompt), len(ids) - 1)))
    return found


def grouped(rows: list[Row], batch: int, count: int) -> list[list[Row]]:
    """`count` batches of rows of like length, from short ones to long ones."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    every = [by_length[i : i + batch] for i in range(0, len(by_length), batch)]
    return every[len(every) // (2 * count) :: max(len(every) // count, 1)][:count]


def middle(rows: list[Row], batch: int) -> list[Row]:
    """Of all batches, one after another, that whose padded size is the median."""
    every = [rows[i : i + batch] for i in range(0, len(rows) - batch + 1, batch)]
    return sorted(every, key=lambda rows: max(len(row.ids) for row in rows))[len(every) // 2]


def padded(batch: list[Row]) -> dict[str, Any]:
    """What a plain loop feeds: input_ids, attention_mask and labels, (B, T)."""
    import torch

    width = max(len(row.ids) for row in batch)

    def laid(parts: list[list[int]], fill: int) -> Any:
        return torch.tensor([part + [fill] * (width - len(part)) for part in parts])

    return {
        "input_ids": laid([row.ids for row in batch], 0),
        "attention_mask": laid([[1] * len(row.ids) for row in batch], 0),
        "labels": laid([row.labels for row in batch], -100),
    }


def tokens(batch: list[Row]) -> int:
    """Real ones."""
    return sum(len(row.ids) for row in batch)
