"""Per-row loss and accuracy of a model, without gradients, with the losses in float32.

Rows of similar length are padded on the right to a batch; results come back in the order of the
rows. The output head runs only at label positions, where the architecture has `logits_to_keep`.
A row with more than MAX_LOGITS logits is a batch by itself, and its logits are computed in pieces.

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

from lorica.base.batching import pad_id, padding_of
from lorica.base.context_length import embedding_rows
from lorica.base.tail import tail_of
from lorica.core.condition import with_conditions
from lorica.core.modes import in_mode
from lorica.data.batch import Batch, pad
from lorica.data.example import Example
from lorica.errors import DataError, TrainingError, counted, listed
from lorica.progress import Progress

MAX_LOGITS = 1 << 27
"""Logits that are computed at a time: 512 MB in float32."""
MAX_FLOAT32 = 1 << 24
"""Logits that are converted to float32 at a time."""


@dataclass(frozen=True)
class LabelLogits:
    """Logits at label positions, or those of classes.

    rows: (N,) number of the row of each label. logits: (N, V) or (N, C). targets: (N,).
    """

    rows: NDArray[np.int64]
    logits: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Scores:
    """The loss and the accuracy of each row, in the order of the rows.

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
    """The scores of every row. The training mode of each module is restored.

    batch: most rows at a time.
    Raises: DataError if no row has a label; TrainingError if a loss is not finite.
    """
    scores = score_share(model, examples, batch=batch)
    if not scores.tokens.sum():
        raise DataError(
            f"none of the {counted(len(examples), 'row')} has a label: there is nothing to "
            "measure.",
            fix="give rows with an answer, or data.completion_only: false",
        )
    return scores


def score_share(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch: int = 16,
    passes: int = 0,
    title: str = "evaluating",
) -> Scores:
    """As `score`, of rows none of which need have a label: a share of more rows.

    passes: forward passes at least; those beyond what the rows need are not counted.
    title: what the progress says.
    """
    rows = len(examples)
    nll, tokens, correct = np.zeros(rows), np.zeros(rows, int), np.zeros(rows, int)
    probabilities = np.zeros((rows, 0), np.float32)
    with Progress(title, rows) as bar:
        for piece in label_logits(model, examples, batch=batch):
            if examples[0].label is not None:
                if not probabilities.size:
                    probabilities = np.zeros((rows, piece.logits.shape[-1]), np.float32)
                probabilities[piece.rows] = piece.logits.float().softmax(-1).cpu().numpy()
            losses, hits = _losses_and_hits(piece.logits, piece.targets)
            begun = len(np.unique(piece.rows[tokens[piece.rows] == 0]))
            np.add.at(nll, piece.rows, losses.double().cpu().numpy())
            np.add.at(correct, piece.rows, hits.cpu().numpy())
            np.add.at(tokens, piece.rows, 1)
            bar.advance(begun)
    for _ in range(passes - passes_of(model, examples, batch=batch)):
        next(label_logits(model, examples[:1]))
    _check_finite(model, examples, nll)
    return Scores(nll, tokens, correct, probabilities)


def class_probabilities(
    model: nn.Module, examples: Sequence[Example], *, batch: int = 16
) -> NDArray[np.float32]:
    """(rows, C) of a classifier. Labels are ignored, and may be missing."""
    unlabelled = [replace(example, label=0) for example in examples]  # any class: a row has one
    by_row: dict[int, NDArray[np.float32]] = {}
    for piece in label_logits(model, unlabelled, batch=batch):
        shares = piece.logits.float().softmax(-1).cpu().numpy()
        by_row |= zip(piece.rows.tolist(), shares, strict=True)
    return np.stack([by_row[i] for i in range(len(examples))])


def mean_loss(model: nn.Module, examples: Sequence[Example], *, batch: int = 16) -> float:
    """Nats per label token over all rows together (per row for a classifier)."""
    return score(model, examples, batch=batch).loss


def label_logits(
    model: nn.Module, examples: Sequence[Example], *, batch: int = 16
) -> Iterator[LabelLogits]:
    """The logits of every label, by batches; those of a long row in several pieces."""
    foreign: Any = model
    device = next(model.parameters()).device
    head_at_labels = "logits_to_keep" in signature(foreign.forward).parameters
    with in_mode(model, training=False), torch.no_grad():
        for picked in _batches(model, examples, batch):
            inputs = pad([examples[i] for i in picked], pad_id(model)).to(device)
            numbers = np.asarray(picked)
            with with_conditions(model, inputs.conditions):
                if inputs.labels is not None:
                    yield LabelLogits(
                        numbers, _forward(foreign, inputs, head_at_labels), inputs.labels
                    )
                    continue
                of_label, start = numbers[inputs.label_rows.cpu().numpy()], 0
                max_tokens = _max_tokens(model)
                for logits in _pieces(foreign, inputs, head_at_labels, max_tokens):
                    own = slice(start, start := start + len(logits))
                    yield LabelLogits(of_label[own], logits, inputs.targets[own])


def _pieces(model: Any, inputs: Batch, head_at_labels: bool, max_tokens: int) -> Iterator[Tensor]:
    """The logits of a batch in pieces of at most `max_tokens` labels, in order."""
    is_long = len(inputs.lengths) == 1 and len(inputs.targets) > max_tokens
    is_sharded = any(hasattr(p, "_local_tensor") for p in model.parameters())
    tail = tail_of(model) if is_long and not is_sharded else None
    if tail is None:  # also where the head cannot be called by itself
        yield _forward(model, inputs, head_at_labels)
        return
    decoded = tail.decoder(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, use_cache=False
    )
    hidden = decoded.last_hidden_state.flatten(0, 1)[inputs.label_positions]
    yield from map(tail, hidden.split(max_tokens))


def passes_of(model: nn.Module, examples: Sequence[Example], *, batch: int = 16) -> int:
    """How many forward passes the scores of these rows take."""
    return sum(1 for _ in _batches(model, examples, batch))


def _check_finite(model: nn.Module, examples: Sequence[Example], nll: NDArray[np.float64]) -> None:
    not_finite = [examples[i].where for i in np.flatnonzero(~np.isfinite(nll)).tolist()]
    if not_finite:
        damaged = [
            name
            for name, p in model.named_parameters()
            if not bool(getattr(p, "_local_tensor", p).isfinite().all())  # of one that is sharded
        ]
        raise TrainingError(
            f"the loss of {len(not_finite)} of {counted(len(examples), 'row')} is not finite.",
            rows=listed(not_finite),
            **({"weights_that_are_not_finite": listed(damaged)} if damaged else {}),
            fix="download the base again; or, if these are weights of an adapter, train with a "
            "lower learning rate"
            if damaged
            else "load the base in float32, or train with a lower learning rate",
        )


def _batches(model: nn.Module, examples: Sequence[Example], batch: int) -> Iterator[list[int]]:
    """Row numbers of each batch, longest rows first, so that one that does not fit fails at once.

    Rows longer than `Batching.shared` are a batch each; see base.batching.
    """
    max_tokens = _max_tokens(model)
    batching = padding_of(model)
    rows, shared = 1 if batching.refused else batch, batching.shared
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    start = 0
    while start < len(order):
        longest = max(len(examples[order[start]].ids), 1)
        count = min(rows, max(1, max_tokens // longest))
        count = 1 if shared is not None and longest > shared else count
        yield order[start : start + count]
        start += count


def _max_tokens(model: nn.Module) -> int:
    """Tokens of a batch whose logits are MAX_LOGITS."""
    return MAX_LOGITS // (embedding_rows(model) or 1)


def _forward(model: Any, batch: Batch, head_at_labels: bool) -> Tensor:
    if batch.labels is not None:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    width = batch.input_ids.shape[1]
    row, column = batch.label_positions // width, batch.label_positions % width
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if not head_at_labels:
        return model(**inputs, use_cache=False).logits[row, column]
    columns, place = column.unique(return_inverse=True)  # those that any row of the batch needs
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long, device=row.device)
    return model(**inputs, use_cache=False, logits_to_keep=columns).logits[row, place]


def _losses_and_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, whether the first choice is right) of each label; logits (N, V), targets (N,)."""
    losses, hits = [], []
    size = max(1, MAX_FLOAT32 // logits.shape[-1])
    for chunk, wanted in zip(logits.split(size), targets.split(size), strict=True):
        losses.append(F.cross_entropy(chunk.float(), wanted, reduction="none"))
        hits.append(chunk.argmax(-1) == wanted)
    if not losses:
        return logits.new_zeros(0), targets.new_zeros(0)
    return torch.cat(losses), torch.cat(hits)
