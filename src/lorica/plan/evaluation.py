"""The memory of an evaluation of validation rows, which may need more than a training step.

It has no backward pass, but its logits are there at once: those of every position that any row of
the batch has a label at, and then those of the labels; see lorica.evaluation.loss. With a small
micro-batch, or with gradient checkpointing, they are the peak of the run.
"""

from dataclasses import dataclass

from lorica.plan.shapes import DTYPE_BYTES, Shapes
from lorica.plan.tokens import TokenCounts
from lorica.training.settings import TrainSettings

MAX_FLOAT32 = 1 << 24
"""Logits that are converted to float32 at a time."""


@dataclass(frozen=True)
class Evaluated:
    """The largest batch of an evaluation: its rows and tokens, and bytes of what it holds."""

    rows: int = 0
    tokens: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.logits


def largest_evaluation(shapes: Shapes, settings: TrainSettings, tokens: TokenCounts) -> Evaluated:
    """The batch of the longest validation rows; without any, of some training rows."""
    batch, size = tokens.evaluated, DTYPE_BYTES[settings.dtype]
    if batch is None:
        return Evaluated()
    padded = batch.rows * batch.longest
    heads = shapes.heads * shapes.head_size
    block = 2 * shapes.hidden + max(3 * shapes.intermediate, 4 * heads)
    in_blocks, after = size * padded * block, size * padded * shapes.hidden
    if tokens.classes is not None:
        return Evaluated(batch.rows, padded, in_blocks, 2 * size * batch.rows * tokens.classes)
    at_positions = size * batch.rows * batch.positions * shapes.vocab
    at_labels = batch.labels * shapes.vocab
    converted = 4 * (1 if size == 4 else 2) * min(at_labels, MAX_FLOAT32)
    logits = at_positions + size * at_labels + converted
    if in_blocks > after + logits:
        return Evaluated(batch.rows, padded, in_blocks, 0)
    return Evaluated(batch.rows, padded, after, logits)
