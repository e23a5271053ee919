"""A base beside its adapter on the same rows, every figure with its interval.

One model serves for both: the adapter is switched off for the base's turn. A difference counts
as shown when its 95 % interval leaves out 0. Intervals are those of each figure by itself: of
twenty figures that nothing changed, one will be called different.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lorica.base.load import Base
from lorica.core.attach import use
from lorica.data.tokenise import Example
from lorica.errors import TrainingError
from lorica.evaluation.answers import Quiz, quiz, take
from lorica.evaluation.conditions import ready, swap
from lorica.evaluation.loss import Scores, label_logits, score
from lorica.evaluation.stats import Interval, bootstrap, newcombe, wilson

SAME = 1e-7
"""Logits this close are the same."""
FEW = 20
"""Rows under which a bootstrap interval is known to be too narrow."""
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
    """

    measures: list[Measure]
    rows: int
    tokens: int
    samples: list[Sample] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    path: str = ""
    base: str = ""
    data: str = ""

    def __getitem__(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "path": self.path,
            "base": self.base,
            "data": self.data,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "measures": {measure.name: measure.as_dict() for measure in self.measures},
            "examples": [dict(vars(sample)) for sample in self.samples],
            "lines": self.lines,
        }


def evaluate_loaded(
    base: Base,
    examples: Sequence[Example],
    *,
    adapted: bool = True,
    exact_match: bool = True,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
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
    asked = Quiz([], 0, [])
    if exact_match and base.labels is None:
        asked = quiz(base, examples, max_new_tokens)
    lines += asked.lines
    scores: list[Scores] = []
    answers: list[list[str]] = []
    cut: list[str] = []
    for turn in [use(base.model), nullcontext()] if adapted else [nullcontext()]:
        with turn:
            scores.append(score(base.model, examples, batch=batch_size))
            said, cut = take(base, asked, batch_size=batch_size)
            answers.append(said)
    if adapted:
        lines += swap(base.model, examples, scores[-1], batch_size=batch_size, seed=seed)
    lines += [f"exact match: {line}" for line in cut]  # the adapter's; a base rambles on anyway
    if len(examples) < FEW:
        lines.append(f"{len(examples)} rows are few: the intervals of loss and token accuracy "
                     "are too narrow")  # fmt: skip
    measures = _classes(scores, seed) if base.labels is not None else _tokens(scores, seed)
    measures += _matches(asked, answers)
    samples = _samples(asked, answers)
    return Report(measures, len(examples), int(scores[0].tokens.sum()), samples, lines)


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


def _tokens(scores: list[Scores], seed: int) -> list[Measure]:
    """Loss, perplexity and token accuracy, weighted by label tokens."""
    rows, weights = len(scores[0].nll), scores[0].tokens
    losses = bootstrap([s.nll for s in scores], weights, seed=seed)
    hits = bootstrap([s.correct for s in scores], weights, seed=seed)
    both = len(scores) > 1

    def measure(name: str, better: Any, draws: Any, transform: Any = None) -> Measure:
        found = [draws.interval(i, transform) for i in range(len(scores))]
        apart = [draws.difference(0, 1, transform)] if both else []
        return Measure(name, rows, better, *found, *apart)

    return [
        measure("loss", "lower", losses),
        measure("perplexity", "lower", losses, _exp),
        measure("token_accuracy", "higher", hits),
    ]


def _classes(scores: list[Scores], seed: int) -> list[Measure]:
    """Loss and accuracy of a classifier, per row."""
    loss, *_ = _tokens(scores, seed)
    return [loss, _shares("accuracy", [s.correct.astype(bool) for s in scores])]


def _matches(asked: Quiz, answers: list[list[str]]) -> list[Measure]:
    if not asked.questions:
        return []
    wanted = np.array([question.wanted for question in asked.questions], dtype=object)
    return [_shares("exact_match", [np.array(a, dtype=object) == wanted for a in answers])]


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


def _exp(values: Any) -> Any:
    return np.exp(np.minimum(values, math.log(1e300)))
