"""Score a run, or the base alone, on the test rows and on the "before" rows of a study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lorica.base import bundled
from lorica.base.load import LoadedModel
from lorica.compare.study import Study
from lorica.core.attach import use
from lorica.data.config import DataConfig
from lorica.data.load import Data, load_data
from lorica.evaluation.conditions import prepare_conditions
from lorica.evaluation.evaluate import data_settings
from lorica.evaluation.forgetting import OWN, give_conditions, knows_own_domain, load_before_rows
from lorica.evaluation.loss import score
from lorica.evaluation.measure import check_adapter_acts
from lorica.evaluation.questions import is_question, question_set
from lorica.evaluation.score_model import ModelScores, score_model
from lorica.evaluation.task import Task, TaskScores, check_references, tasks_named
from lorica.formats.open_model import open_model

T = TypeVar("T")
SAMPLES = 4
"""Test rows whose answers are shown, evenly spaced."""
NO_TASKS = ("loss", "token_accuracy")
"""Measures that need no answers."""


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored: plain values, so that another process can be handed them.

    test, before: settings of the rows; before is None where forgetting is not measured.
    """

    measures: tuple[str, ...]
    test: DataConfig
    before: DataConfig | None


def score_settings(study: Study, max_length: int | None) -> ScoreSettings:
    """max_length: of a row, the same for all sides."""
    data = study.data.model_copy(update={"path": study.test, "max_length": max_length})
    test, before = data_settings(data, None), study.before
    if before is None and knows_own_domain(study.base):
        before = OWN
    if before is not None:
        overlong = study.data.overlong or "truncate"
        path = str(bundled.DOMAIN) if before == OWN else before
        rows = DataConfig(path=path, validation=0.0, max_length=max_length, overlong=overlong)
        return ScoreSettings(tuple(study.all_measures), test, rows)
    return ScoreSettings(tuple(study.all_measures), test, None)


def score_run(path: Path, settings: ScoreSettings, before_loss: float | None) -> dict[str, Any]:
    """The scores of a run's adapter, as its record holds them.

    before_loss: of the run's base on the "before" rows; None: it is measured here.

    Raises: LoricaError if it cannot be scored: its loss is not finite, or it does nothing.
    """
    loaded, _ = open_model(path)
    rows = load_rows(settings.test, loaded)
    prepare_conditions(loaded, rows.train)
    check_adapter_acts(loaded.model, rows.train)
    record = _test_scores(loaded, rows, settings.measures)
    if settings.before is not None:
        before = load_before_rows(settings.before, loaded)
        before = give_conditions(before, loaded, list(rows.train))
        prepare_conditions(loaded, before.examples)
        after = loss_scores(loaded, before.examples)
        if before_loss is None:
            with use(loaded.model):
                before_loss = loss_scores(loaded, before.examples)["value"]
        record["forgotten"] = after["value"] - before_loss
        record["before_scores"] = after
    return record


def score_base(base: str, dtype: str, settings: ScoreSettings) -> dict[str, Any]:
    """The scores of the base without an adapter, as its record holds them."""
    loaded, _ = open_model(base, dtype=dtype)
    record = _test_scores(loaded, load_rows(settings.test, loaded), settings.measures)
    if settings.before is not None:
        before = load_before_rows(settings.before, loaded)
        record["before_scores"] = loss_scores(loaded, before.examples)
    return record


def load_rows(config: DataConfig, loaded: LoadedModel) -> Data:
    """The rows to score, tokenized for a model."""
    return load_data(
        config,
        loaded.tokenizer,
        seed=0,
        max_length=loaded.max_length,
        labels=loaded.labels,
        texts=True,
    )


def loss_scores(loaded: LoadedModel, examples: Sequence[Any]) -> dict[str, Any]:
    """The loss on rows, in nats per label token, as a record holds it."""
    losses = score(loaded.model, examples)
    return as_record(ModelScores(losses, [], {}).measures["loss"])


def as_record(scores: TaskScores) -> dict[str, Any]:
    """A measure as a record holds it: plain lists."""
    return {
        "value": scores.value,
        "better": scores.better,
        "rows": scores.rows.astype(float).tolist(),
        "weights": [] if scores.weights is None else scores.weights.tolist(),
        "statistics": [] if scores.statistics is None else scores.statistics.tolist(),
    }


def _test_scores(loaded: LoadedModel, rows: Data, measures: Sequence[str]) -> dict[str, Any]:
    """The scores on the test rows, and a few answers, as a record holds them."""
    tasks, asked = tasks_of(measures), question_set(loaded, rows.train)
    if not tasks:
        asked = replace(asked, questions=_spaced(asked.questions))
    scores = score_model(loaded, list(rows.train), asked, tasks)
    samples = zip(asked.questions, scores.answers, strict=True) if asked.questions else ()
    return {
        "scores": {name: as_record(scores.measures[name]) for name in measures},
        "samples": [[q.row.prompt, q.reference, text] for q, text in _spaced(list(samples))],
        "answers": [n for task in scores.tasks.values() for n in task.notices] + scores.notices,
    }


def tasks_of(measures: Sequence[str]) -> dict[str, Task]:
    """The measures that compare answers. Raises: MissingError if a package is missing."""
    return tasks_named(name for name in measures if name not in NO_TASKS)


def check_can_answer(measures: Sequence[str], rows: Data) -> list[str]:
    """Check that the test rows have what the measures compare. Returns: notices.

    Raises: DataError, with the place of a row, if they have not; MissingError.
    """
    tasks = tasks_of(measures)
    if rows.labels is not None:
        return []
    sources = [example.source for example in rows.train]
    return check_references(tasks, [row for row in sources if row is not None and is_question(row)])


def _spaced(items: Sequence[T]) -> list[T]:
    """A few items, evenly spaced."""
    count = min(SAMPLES, len(items))
    return [items[i * len(items) // count] for i in range(count)]
