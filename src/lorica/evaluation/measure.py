"""A base and its adapter on the same rows: every metric with its 95 % confidence interval.

One loaded model serves for both; the adapter is off while the base is measured. A difference
counts as shown when its 95 % interval excludes 0. Each interval is for one metric by itself: of
twenty metrics without a true difference, about one will be called different.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.data.example import Example
from lorica.errors import TrainingError, counted
from lorica.evaluation.classes import Classes, confusion, macro_f1
from lorica.evaluation.conditions import prepare_conditions, swapped_condition_notice
from lorica.evaluation.loss import Scores, label_logits
from lorica.evaluation.predictions import class_rows, text_rows
from lorica.evaluation.questions import QuestionSet, question_set
from lorica.evaluation.score_model import ModelScores, score_model
from lorica.evaluation.stats import MIN_ROWS, Interval, capped_exp, ratios
from lorica.evaluation.task import Task, Unit, check_references
from lorica.evaluation.task_intervals import hit_intervals, scored_rows, task_intervals
from lorica.evaluation.tasks.exact_match import ExactMatch

SAME_LOGITS = 1e-7
"""Largest difference of logits that count as equal."""
FEW_ROWS = 20
"""Below this, the interval of a loss may be too narrow where a few rows are far worse."""
SAMPLES = 4


@dataclass(frozen=True)
class Measure:
    """One metric. adapter and difference (adapter - base) are None if only a base is measured.

    unit: "share": from 0 to 1, printed in percent.
    """

    name: str
    rows: int
    better: Literal["lower", "higher"]
    base: Interval
    adapter: Interval | None = None
    difference: Interval | None = None
    unit: Unit = field(default="score", kw_only=True)

    @property
    def verdict(self) -> str | None:
        """What the difference shows: "better", "worse" or "no difference shown"."""
        if self.difference is None:
            return None
        side = self.difference.side * (1 if self.better == "higher" else -1)
        return {1: "better", -1: "worse", 0: "no difference shown"}[side]

    def as_dict(self) -> dict[str, Any]:
        intervals = {"base": self.base, "adapter": self.adapter, "difference": self.difference}
        plain = {key: interval and interval.as_dict() for key, interval in intervals.items()}
        about = {"rows": self.rows, "better": self.better, "unit": self.unit}
        return {**about, **plain, "verdict": self.verdict}


@dataclass(frozen=True)
class Sample:
    """One row with its reference (wanted), and the answer of base and adapter."""

    where: str
    prompt: str
    wanted: str
    base: str
    adapter: str | None = None


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    path: the adapter, run or base. data: where the rows come from.
    tokens: label tokens (rows with a class count one).
    classes: of a classifier. predictions: one JSON object for each row.
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
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    adapted: bool = True,
    exact_match: bool = True,
    tasks: Mapping[str, Task] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Report:
    """Measure a loaded model.

    adapted: the model carries an active adapter, which is measured beside the base.
    exact_match, tasks: let both write an answer to every row with a prompt, and compare it with
        the references.

    Raises: TrainingError if the adapter changes no logit, or a loss is not finite; DataError if
        no row has a label, none has the condition that the adapter needs, or no reference is of
        the kind that a task compares.
    """
    compared: dict[str, Task] = {"exact_match": ExactMatch()} if exact_match else {}
    compared = {} if loaded.labels is not None else {**compared, **(tasks or {})}
    asked = question_set(loaded, examples if compared else [], max_new_tokens)
    notices = [*asked.notices, *check_references(tasks or {}, asked.rows)]
    notices += prepare_conditions(loaded, examples)
    if adapted:
        check_adapter_acts(loaded.model, examples)
    contexts = [use(loaded.model), nullcontext()] if adapted else [nullcontext()]
    systems = []
    for context in contexts:
        with context:
            systems.append(score_model(loaded, examples, asked, compared, batch_size=batch_size))
    scores = [system.losses for system in systems]
    if adapted:
        notices += swapped_condition_notice(
            loaded.model, examples, scores[-1], batch_size=batch_size
        )
    notices += [f"answers: {notice}" for notice in systems[-1].notices]  # of the adapter, if any
    notices += _task_notices(systems)
    notices += _few_rows_notice(len(examples))
    tokens = int(scores[0].tokens.sum())
    if loaded.labels is not None:
        measures, classes = _class_measures(loaded.labels, examples, scores)
        notices += _one_class_notice(classes)
        rows, samples = class_rows(examples, scores, loaded.labels), []
    else:
        measures, classes = [*token_measures(scores), *_task_measures(compared, systems)], None
        rows, samples = text_rows(examples, systems, asked), _samples(asked, systems)
    return Report(
        measures, len(examples), tokens, samples, notices, classes=classes, predictions=rows
    )


def check_adapter_acts(model: nn.Module, examples: Sequence[Example]) -> None:
    """Raises: TrainingError if the adapter changes the logits of no row.

    A few rows are tried at a time; as a rule the first ones show a difference.
    """
    step = 4
    for start in range(0, len(examples), step):
        rows = examples[start : start + step]
        adapted = torch.cat([piece.logits.flatten() for piece in label_logits(model, rows)])
        with use(model):
            plain = torch.cat([piece.logits.flatten() for piece in label_logits(model, rows)])
        change = (adapted - plain).abs().max().item() if len(plain) else 0.0
        if not change <= SAME_LOGITS:  # also NaN, which scoring reports
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
        Measure("token_accuracy", rows, "higher", *accuracy, unit="share"),
    ]


def _class_measures(
    labels: list[str], examples: Sequence[Example], scores: list[Scores]
) -> tuple[list[Measure], Classes]:
    """Loss, accuracy and macro F1 of a classifier, and the metrics of each class."""
    loss, *_ = token_measures(scores)
    actual = np.array([e.label for e in examples])
    predictions = [s.probabilities.argmax(1) for s in scores]
    count = len(labels)
    f1 = macro_f1(actual, predictions, count)
    hits = hit_intervals([s.correct.astype(bool) for s in scores])
    accuracy = Measure("accuracy", len(examples), "higher", *hits, unit="share")
    tables = [confusion(actual, predicted, count) for predicted in predictions]
    measure = Measure("macro_f1", len(examples), "higher", *f1, unit="share")
    return [loss, accuracy, measure], Classes(labels, tables)


def _task_measures(tasks: Mapping[str, Task], systems: list[ModelScores]) -> list[Measure]:
    measures = []
    for name in systems[0].tasks:
        scores = [system.tasks[name] for system in systems]
        rows, task = int(scored_rows(scores[0]).sum()), tasks[name]
        intervals = task_intervals(task, scores)
        measures.append(Measure(name, rows, task.better, *intervals, unit=task.unit))
    return measures


def _task_notices(systems: list[ModelScores]) -> list[str]:
    """The notices of the tasks; those of one system alone with its name."""
    notices: dict[tuple[str, str], list[str]] = {}
    for system, name in zip(systems, ("base", "adapter"), strict=False):
        for task, scores in system.tasks.items():
            for notice in scores.notices:
                notices.setdefault((task, notice), []).append(name)
    return [
        f"{task}: {notice}" if len(names) == len(systems) else f"{task}, {names[0]}: {notice}"
        for (task, notice), names in notices.items()
    ]


def _samples(asked: QuestionSet, systems: list[ModelScores]) -> list[Sample]:
    """A few rows, evenly spaced."""
    count = len(asked.questions)
    picked = sorted({i * count // SAMPLES for i in range(min(SAMPLES, count))})
    return [
        Sample(q.row.where, q.row.prompt, q.reference, *(s.answers[i] for s in systems))
        for i, q in ((i, asked.questions[i]) for i in picked)
    ]


def _few_rows_notice(count: int) -> list[str]:
    rows = counted(count, "row")
    if count < MIN_ROWS:
        return [f"too few rows for intervals: {rows}; at least {MIN_ROWS} are needed"]
    if count < FEW_ROWS:
        notice = (
            f"few rows ({rows}): where some rows are far worse than the rest, a 95 % interval of "
            "the loss contains the true value in about 88 of 100 cases"
        )
        return [notice]
    return []


def _one_class_notice(classes: Classes) -> list[str]:
    """A notice on an adapter that predicts the same class for all rows."""
    if len(classes.confusion) < 2:
        return []
    table = classes.confusion[1]
    predicted = table.sum(0)
    if predicted.max() < predicted.sum() or (table.sum(1) > 0).sum() < 2:
        return []
    name = classes.labels[int(predicted.argmax())]
    notice = (
        f"the adapter predicts {name} for all {counted(int(predicted.sum()), 'row')}: it does not "
        "separate the classes; train longer, or with another learning_rate"
    )
    return [notice]
