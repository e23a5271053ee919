"""Measure the loss of a run on its validation rows, and keep the best adapter."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from lorica.core.attach import use
from lorica.data.example import Example
from lorica.errors import DataError
from lorica.evaluation.loss import passes_of, score, score_share
from lorica.training.adapter import keep_as_best
from lorica.training.state import RunState

PROBE_ROWS = 32


def evaluate(state: RunState) -> None:
    """Update the progress with the validation loss, and log it.

    Every process evaluates its share of the rows. Without validation rows: only check that the
    loss on some training rows is finite.
    """
    model, name, progress = state.base.model, state.adapter.name, state.progress
    if not state.data.validation:
        if progress.step:  # finite weights may give infinite logits
            rows = state.data.train[: state.config.micro_batch_size]
            with use(model, name):
                score_share(model, rows, title="checking the loss after training")
        return
    began = time.perf_counter()
    loss, accuracy = loss_and_accuracy_of_all(state)
    progress.seconds += time.perf_counter() - began
    _record(state, loss)
    state.run.log(
        "eval",
        step=progress.step,
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        **({"accuracy": accuracy} if state.data.labels else {}),
    )


def loss_and_accuracy_of_all(state: RunState) -> tuple[float, float]:
    """(mean loss, share of labels that are the model's first choice) on the validation rows."""
    model, placement, rows = state.base.model, state.placement, state.data.validation
    own = placement.rows(rows)
    with use(model, state.adapter.name):
        share = own or rows[:1]  # fewer rows than processes: a pass of its own, not counted
        passes = int(placement.agree(passes_of(model, share))) if placement.in_lockstep else 0
        scores = score_share(model, share, passes=passes)
    sums = [scores.nll.sum(), scores.correct.sum(), scores.tokens.sum()] if own else [0.0] * 3
    nll, correct, tokens = placement.reduce(torch.tensor(sums, dtype=torch.float64)).tolist()
    if not tokens:
        raise DataError(
            "no validation row has a label: there is nothing to measure.",
            fix="give rows with an answer, or data.completion_only: false",
        )
    return nll / tokens, correct / tokens


def _record(state: RunState, loss: float) -> None:
    progress = state.progress
    progress.last_eval = loss
    if progress.first_eval is None:
        progress.first_eval = loss
    if progress.best_loss is not None and loss >= progress.best_loss:
        progress.waited += 1
        return
    progress.best_loss, progress.best_step, progress.waited = loss, progress.step, 0
    if state.config.early_stopping_patience:
        keep_as_best(state.adapter, state.base.model, state.placement)


def probe(model: nn.Module, rows: Sequence[Example], name: str) -> Callable[[], float]:
    """The mean loss on PROBE_ROWS training rows, the same ones at every call and resume."""
    every = max(len(rows) // PROBE_ROWS, 1)
    return partial(mean_loss, model, rows[::every][:PROBE_ROWS], name)


def mean_loss(model: nn.Module, rows: Sequence[Example], name: str) -> float:
    """Nats per label token (per row for a classifier) with adapter `name` alone.

    Raises: TrainingError if the loss of a row is not finite.
    """
    return loss_and_accuracy(model, rows, name)[0]


def loss_and_accuracy(model: nn.Module, rows: Sequence[Example], name: str) -> tuple[float, float]:
    """(mean loss, share of labels that are the model's first choice) with adapter `name` alone."""
    with use(model, name):
        scores = score(model, rows)
    return scores.loss, scores.accuracy
