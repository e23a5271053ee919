"""A base beside its adapter on the same rows, every figure with its interval.

One model serves for both: the adapter is switched off for the base's turn. A difference counts
as shown when its 95 % interval leaves out 0. Intervals are those of each figure by itself: of
twenty figures that nothing changed, one will be called different.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.data.example import Example
from lorica.errors import TrainingError
from lorica.evaluation.answers import Quiz, quiz, take
from lorica.evaluation.classes import Classes, confusion, macro_f1
from lorica.evaluation.conditions import ready, swap
from lorica.evaluation.loss import Scores, label_logits, score
from lorica.evaluation.predictions import predictions
from lorica.evaluation.stats import LEAST, Interval, capped_exp, newcombe, ratios, wilson
from lorica.generation.stops import Stops

SAME = 1e-7
"""Logits this close are the same."""
FEW = 20
"""Rows under which an interval may be too narrow where a few rows are far worse than the rest."""
SAMPLES = 4


@dataclass(frozen=True)
class Measure:
    """One figure. adapter and difference (adapter - base) are None when a base is alone."""

    name: str
    rows: int
    better: Literal["lower", "higher"]
    base: Interval
    adapter: Interval | None = None
    difference: Interval | None = None

    @property
    def verdict(self) -> str | None:
        """What the difference shows: "better", "worse" or "no difference shown"."""
        if self.difference is None:
            return None
        side = self.difference.side * (1 if self.better == "higher" else -1)
        return {1: "better", -1: "worse", 0: "no difference shown"}[side]

    def as_dict(self) -> dict[str, Any]:
        parts = {"base": self.base, "adapter": self.adapter, "difference": self.difference}
        plain = {key: part and part.as_dict() for key, part in parts.items()}
        return {"rows": self.rows, **plain, "verdict": self.verdict}


@dataclass(frozen=True)
class Sample:
    """One row as both answer it."""

    where: str
    prompt: str
    wanted: str
    base: str
    adapter: str | None = None


@dataclass(frozen=True)
class Report:
    """What an evaluation came to.

    path: the adapter, run or base; data: where the rows come from.
    tokens: label tokens (rows with a class count one).
    classes: of a classifier. predictions: what became of every row, one JSON object each.
    """

    measures: list[Measure]
    rows: int
    tokens: int
    samples: list[Sample] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    path: str = ""
    base: str = ""
    data: str = ""
    classes: Classes | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        from lorica.evaluation.html import report_html

        return report_html(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the predictions."""
        return {
            "path": self.path,
            "base": self.base,
            "data": self.data,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "measures": {measure.name: measure.as_dict() for measure in self.measures},
            **({"classes": self.classes.as_dict()} if self.classes else {}),
            "examples": [dict(vars(sample)) for sample in self.samples],
            "lines": self.notices,
        }


def evaluate_loaded(
    base: LoadedModel,
    examples: Sequence[Example],
    *,
    adapted: bool = True,
    exact_match: bool = True,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Report:
    """Measure a model that is open already.

    adapted: the model carries an active adapter, which is measured beside the base.
    exact_match: let both write an answer to every row with a prompt.

    Raises: TrainingError if the adapter changes no logit, or a loss is not finite; DataError if
        no row has a label, or none has the condition that the adapter needs.
    """
    lines = ready(base, examples)
    if adapted:
        check_acts(base.model, examples)
    asked = Quiz([], 0, Stops(base.tokenizer))
    if exact_match and base.labels is None:
        asked = quiz(base, examples, max_new_tokens)
    lines += asked.notices
    scores: list[Scores] = []
    answers: list[list[str]] = []
    cut: list[str] = []
    for turn in [use(base.model), nullcontext()] if adapted else [nullcontext()]:
        with turn:
            scores.append(score(base.model, examples, batch=batch_size))
            said, cut = take(base, asked, batch_size=batch_size)
            answers.append(said)
    if adapted:
        lines += swap(base.model, examples, scores[-1], batch_size=batch_size)
    lines += [f"exact match: {line}" for line in cut]  # the adapter's; a base rambles on anyway
    if len(examples) < LEAST:
        lines.append(f"{len(examples)} rows are too few: intervals need {LEAST} at least")
    elif len(examples) < FEW:
        lines.append(
            f"{len(examples)} rows are few: a 95 % interval of the loss holds in about 88 "
            "of 100 cases where some rows are far worse than the rest"
        )
    classes = None
    if base.labels is None:
        measures = [*token_measures(scores), *_matches(asked, answers)]
    else:
        measures, classes = _of_classes(base.labels, examples, scores)
        lines += _one_class(classes)
    samples = _samples(asked, answers)
    tokens = int(scores[0].tokens.sum())
    every = predictions(examples, scores, base.labels, asked, answers)
    return Report(
        measures, len(examples), tokens, samples, lines, classes=classes, predictions=every
    )


def check_acts(model: nn.Module, examples: Sequence[Example]) -> None:
    """Refuse an adapter that does nothing: to compare it with its base would be a lie.

    The first rows decide as a rule; where they show no change, all the others are asked too.
    Raises: TrainingError.
    """
    step = 4
    for start in range(0, len(examples), step):
        part = examples[start : start + step]
        adapted = torch.cat([logits.flatten() for _, logits, _ in label_logits(model, part)])
        with use(model):
            bare = torch.cat([logits.flatten() for _, logits, _ in label_logits(model, part)])
        change = (adapted - bare).abs().max().item() if len(bare) else 0.0
        if not change <= SAME:  # also when it is NaN: that is said elsewhere
            return
    raise TrainingError(
        "the adapter does nothing: its logits are those of the base on every row.",
        rows=len(examples),
        fix="train it (a fresh adapter starts as the base), or check that it is the one you mean",
    )


def token_measures(scores: list[Scores]) -> list[Measure]:
    """Loss, perplexity and token accuracy, weighted by label tokens."""
    rows, weights = len(scores[0].nll), scores[0].tokens
    losses = ratios([s.nll for s in scores], weights)
    hits = ratios([s.correct for s in scores], weights)
    systems = range(len(scores))
    loss = [losses.positive(i) for i in systems]
    perplexity = [losses.positive(i, capped_exp) for i in systems]
    accuracy = [hits.share(i) for i in systems]
    if len(scores) > 1:
        loss.append(losses.difference(0, 1))
        perplexity.append(losses.difference_of_exp(0, 1))
        accuracy.append(hits.share_difference(0, 1))
    return [
        Measure("loss", rows, "lower", *loss),
        Measure("perplexity", rows, "lower", *perplexity),
        Measure("token_accuracy", rows, "higher", *accuracy),
    ]


def _of_classes(
    labels: list[str], examples: Sequence[Example], scores: list[Scores]
) -> tuple[list[Measure], Classes]:
    """Loss, accuracy and F1 of a classifier, per row, and what became of each class."""
    loss, *_ = token_measures(scores)
    wanted = np.array([e.label for e in examples])
    chosen = [s.probabilities.argmax(1) for s in scores]
    count = len(labels)
    f1 = Measure("macro_f1", len(examples), "higher", *macro_f1(wanted, chosen, count))
    accuracy = _shares("accuracy", [s.correct.astype(bool) for s in scores])
    classes = Classes(labels, [confusion(wanted, one, count) for one in chosen])
    return [loss, accuracy, f1], classes


def _one_class(classes: Classes) -> list[str]:
    """A notice on an adapter that tells no classes apart; it may look better than its base."""
    if len(classes.confusion) < 2:
        return []
    table = classes.confusion[1]
    given = table.sum(0)
    if given.max() < given.sum() or (table.sum(1) > 0).sum() < 2:
        return []
    name = classes.labels[int(given.argmax())]
    line = (
        f"the adapter takes all {given.sum():,} rows for {name}: it tells no classes apart; train "
        "longer, or with another learning_rate"
    )
    return [line]


def _matches(asked: Quiz, answers: list[list[str]]) -> list[Measure]:
    if not asked.questions:
        return []
    hits = [
        np.array([q.is_right(text) for q, text in zip(asked.questions, said, strict=True)])
        for said in answers
    ]
    return [_shares("exact_match", hits)]


def _shares(name: str, hits: list[Any]) -> Measure:
    """A share of rows, hit or missed."""
    rows = len(hits[0])
    found = [wilson(int(hit.sum()), rows) for hit in hits]
    apart = [newcombe(hits[0], hits[1])] if len(hits) > 1 else []
    return Measure(name, rows, "higher", *found, *apart)


def _samples(asked: Quiz, answers: list[list[str]]) -> list[Sample]:
    """A few rows, at even distances."""
    count = len(asked.questions)
    picked = sorted({i * count // SAMPLES for i in range(min(SAMPLES, count))})
    return [
        Sample(q.row.where, q.row.prompt, q.wanted, *(a[i] for a in answers))
        for i, q in ((i, asked.questions[i]) for i in picked)
    ]
