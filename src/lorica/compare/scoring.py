"""Score a run, or the base alone, on the test rows and on the "before" rows of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorica.base.load import LoadedModel
from lorica.compare.study import Study
from lorica.core.attach import use
from lorica.data.config import DataConfig
from lorica.data.load import Data, load_data
from lorica.errors import DataError
from lorica.evaluation.conditions import prepare_conditions
from lorica.evaluation.evaluate import data_settings
from lorica.evaluation.exact_match import Question, answer_questions, question_set
from lorica.evaluation.loss import score
from lorica.evaluation.measure import check_adapter_acts
from lorica.formats.open_model import open_model

T = TypeVar("T")
SAMPLES = 4
"""Test rows whose answers are shown, evenly spaced."""


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
    test, before = data_settings(data, None), None
    if study.before is not None:
        before = DataConfig(
            path=study.before,
            validation=0.0,
            max_length=max_length,
            overlong=study.data.overlong or "truncate",
        )
    return ScoreSettings(tuple(study.all_measures), test, before)


def score_run(path: Path, settings: ScoreSettings) -> dict[str, Any]:
    """The scores of a run's adapter, as its record holds them.

    Raises: LoricaError if it cannot be scored: its loss is not finite, or it does nothing.
    """
    loaded, _ = open_model(path)
    rows = load_rows(settings.test, loaded)
    prepare_conditions(loaded, rows.train)
    check_adapter_acts(loaded.model, rows.train)
    scores, samples = _scores(loaded, rows, settings.measures)
    record: dict[str, Any] = {"scores": scores, "samples": samples}
    if settings.before is not None:
        before = load_rows(settings.before, loaded)
        after = loss_scores(loaded, before)
        with use(loaded.model):
            record["forgotten"] = after["value"] - loss_scores(loaded, before)["value"]
        record["before_scores"] = after
    return record


def score_base(base: str, dtype: str, settings: ScoreSettings) -> dict[str, Any]:
    """The scores of the base without an adapter, as its record holds them."""
    loaded, _ = open_model(base, dtype=dtype)
    return {"scores": _scores(loaded, load_rows(settings.test, loaded), settings.measures)[0]}


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


def loss_scores(loaded: LoadedModel, rows: Data) -> dict[str, Any]:
    """The loss on rows, in nats per label token, as a record holds it."""
    scores = score(loaded.model, rows.train)
    learned = scores.tokens > 0
    nll, tokens = scores.nll[learned], scores.tokens[learned]
    return {
        "value": scores.loss,
        "better": "lower",
        "rows": (nll / tokens).tolist(),
        "weights": tokens.tolist(),
    }


def _scores(
    loaded: LoadedModel, rows: Data, measures: Sequence[str]
) -> tuple[dict[str, Any], list[list[str]]]:
    """(the scores by measure, samples)."""
    scores = {"loss": loss_scores(loaded, rows)}
    if loaded.labels is not None:
        return scores, []
    asked = question_set(loaded, rows.train)
    wanted = [name for name in measures if name != "loss"]
    if not asked.questions:
        return scores, []
    questions = asked.questions if wanted else _spaced(asked.questions)
    answers, _ = answer_questions(
        loaded, type(asked)(questions, asked.max_new_tokens), batch_size=16
    )
    for name in wanted:
        scores[name] = _task_scores(name, questions, answers)
    pairs = _spaced(list(zip(questions, answers, strict=True)))
    return scores, [[q.row.prompt, q.reference, answer] for q, answer in pairs]


def _task_scores(
    name: str, questions: Sequence[Question], answers: Sequence[str]
) -> dict[str, Any]:
    """A measure of answers, as a record holds it."""
    hits = [float(q.is_correct(answer)) for q, answer in zip(questions, answers, strict=True)]
    return {"value": sum(hits) / len(hits), "better": "higher", "rows": hits}


def _spaced(items: Sequence[T]) -> list[T]:
    """A few items, evenly spaced."""
    count = min(SAMPLES, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def check_can_answer(measures: Sequence[str], rows: Data, path: str) -> None:
    """Raises: DataError if a measure needs answers, and the rows are no questions."""
    wanted = [name for name in measures if name != "loss"]
    kinds = {example.source.kind for example in rows.train if example.source is not None}
    if wanted and kinds <= {"text", "label"}:
        raise DataError(
            f"{path} has no prompts, and the model answers none: {', '.join(wanted)} cannot be "
            "measured.",
            fix="measures: [loss], or rows with a prompt and its answer",
        )
