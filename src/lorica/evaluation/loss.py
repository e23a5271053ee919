"""How well a model predicts given rows: per row, without gradients, in float32.

Rows are padded on the right in batches of like length and come back in the order they were
given. The output head is run only where a label is predicted, as far as the architecture lets
it be told so; what is left is cut so that no batch holds more than LOGITS numbers.

Letters: B rows, T tokens, N label tokens, V vocabulary, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base.batching import padding_of
from lorica.core.condition import given
from lorica.core.modes import in_mode
from lorica.data.batch import Batch, pad
from lorica.data.example import Example
from lorica.errors import DataError, TrainingError, listed
from lorica.progress import Progress

LOGITS = 1 << 27
"""Numbers of one batch's logits: 512 MB in float32. A single row may need more."""
PIECE = 1 << 24
"""Numbers that are turned to float32 at a time."""


@dataclass(frozen=True)
class Scores:
    """What each row came to, in the order of the rows.

    nll: (rows,) summed negative log-likelihood of the row's labels, in nats.
    tokens: (rows,) label tokens; 1 for a row with a class.
    correct: (rows,) labels that are the model's first choice.
    probabilities: (rows, C) of a classifier; (rows, 0) of a language model.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @property
    def loss(self) -> float:
        """Nats per label."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum() / self.tokens.sum())


def score(model: nn.Module, examples: Sequence[Example], *, batch: int = 16) -> Scores:
    """The scores of every row; the model's mode is as before afterwards.

    batch: most rows at a time.
    Raises: DataError if no row has a label; TrainingError if a loss is not finite.
    """
    rows = len(examples)
    nll, tokens, correct = np.zeros(rows), np.zeros(rows, int), np.zeros(rows, int)
    probabilities = np.zeros((rows, 0), np.float32)
    with Progress("evaluating", rows) as bar:
        for picked, logits, made in label_logits(model, examples, batch=batch):
            where = torch.arange(len(picked)) if made.labels is not None else made.label_rows.cpu()
            targets = made.labels if made.labels is not None else made.targets
            losses, hits = _judge(logits, targets)
            if made.labels is not None:
                if not probabilities.size:
                    probabilities = np.zeros((rows, logits.shape[-1]), np.float32)
                probabilities[picked] = logits.float().softmax(-1).cpu().numpy()
            place = np.asarray(picked)[where.numpy()]
            np.add.at(nll, place, losses.double().cpu().numpy())
            np.add.at(correct, place, hits.cpu().numpy())
            np.add.at(tokens, place, 1)
            bar.advance(len(picked))
    if not tokens.sum():
        raise DataError(
            f"none of the {rows} rows has a label: there is nothing to measure.",
            fix="give rows with an answer, or data.completion_only: false",
        )
    wrong = [examples[i].where for i in np.flatnonzero(~np.isfinite(nll)).tolist()]
    if wrong:
        raise TrainingError(
            f"the loss of {len(wrong)} of {rows} rows is not finite.",
            rows=listed(wrong),
            fix="load the base in float32, or train with a lower learning rate",
        )
    return Scores(nll, tokens, correct, probabilities)


def class_probabilities(
    model: nn.Module, examples: Sequence[Example], *, batch: int = 16
) -> NDArray[np.float32]:
    """(rows, C) of a classifier. Labels are not looked at, and need not be there."""
    unlabelled = [replace(example, label=0) for example in examples]  # any class: a row has one
    found: dict[int, NDArray[np.float32]] = {}
    for picked, logits, _ in label_logits(model, unlabelled, batch=batch):
        found |= zip(picked, logits.float().softmax(-1).cpu().numpy(), strict=True)
    return np.stack([found[i] for i in range(len(examples))])


def mean_loss(model: nn.Module, examples: Sequence[Example], *, batch: int = 16) -> float:
    """Nats per label token over all rows together (per row for a classifier)."""
    return score(model, examples, batch=batch).loss


def label_logits(
    model: nn.Module, examples: Sequence[Example], *, batch: int = 16
) -> Iterator[tuple[list[int], Tensor, Batch]]:
    """Batch by batch: (numbers of the rows, logits (N, V) or (B, C), the batch)."""
    foreign: Any = model
    device = next(model.parameters()).device
    keeps = "logits_to_keep" in signature(foreign.forward).parameters
    size = getattr(foreign.config.get_text_config(), "vocab_size", None) or 1
    pad_id = max(getattr(foreign.config, "pad_token_id", None) or 0, 0)
    batching = padding_of(model)
    rows = 1 if batching.refused else batch
    with in_mode(model, training=False), torch.no_grad():
        for picked in _batches(examples, rows, LOGITS // size, batching.shared):
            made = pad([examples[i] for i in picked], pad_id).to(device)
            with given(model, made.conditions):
                logits = _forward(foreign, made, keeps)
            yield picked, logits, made


def _batches(
    examples: Sequence[Example], rows: int, tokens: int, shared: int | None
) -> Iterator[list[int]]:
    """Row numbers of like length, longest first, so that what does not fit fails at once.

    shared: longer rows are a batch each; see base.batching.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    start = 0
    while start < len(order):
        longest = max(len(examples[order[start]].ids), 1)
        many = min(rows, max(1, tokens // longest))
        many = 1 if shared is not None and longest > shared else many
        yield order[start : start + many]
        start += many


def _forward(model: Any, batch: Batch, keeps: bool) -> Tensor:
    if batch.labels is not None:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    width = batch.input_ids.shape[1]
    row, column = batch.label_positions // width, batch.label_positions % width
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if not keeps:
        return model(**inputs, use_cache=False).logits[row, column]
    columns, place = column.unique(return_inverse=True)  # those that any row of the batch needs
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long, device=row.device)
    return model(**inputs, use_cache=False, logits_to_keep=columns).logits[row, place]


def _judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, first choice is right) of each of the N labels; logits (N, V), targets (N,)."""
    losses, hits = [], []
    step = max(1, PIECE // logits.shape[-1])
    for some, wanted in zip(logits.split(step), targets.split(step), strict=True):
        losses.append(F.cross_entropy(some.float(), wanted, reduction="none"))
        hits.append(some.argmax(-1) == wanted)
    if not losses:
        return logits.new_zeros(0), targets.new_zeros(0)
    return torch.cat(losses), torch.cat(hits)
