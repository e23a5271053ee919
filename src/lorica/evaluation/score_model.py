"""Score a loaded model on rows: its loss, and the tasks on what it writes.

The model is scored as it is: with the adapter that is active, or without one. `lorica eval` scores
base and adapter this way, and a study each of its runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lorica.base.load import LoadedModel
from lorica.data.example import Example
from lorica.evaluation.loss import Scores, score
from lorica.evaluation.questions import QuestionSet, answer_questions
from lorica.evaluation.task import Task, TaskScores, can_score


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model on some rows.

    losses: of each row. answers: to the questions, in their order; of a classifier the class of
    each row. tasks: by name, with one score for each answer, and with notices of their own.
    notices: on answers that were cut.
    """

    losses: Scores
    answers: list[str]
    tasks: dict[str, TaskScores]
    notices: list[str] = field(default_factory=list)

    @property
    def measures(self) -> dict[str, TaskScores]:
        """`loss` in nats per label, `token_accuracy` of a language model, and the tasks."""
        losses = self.losses
        measures = {"loss": _per_label(losses.nll, losses.tokens, "lower")}
        if not losses.probabilities.size:
            measures["token_accuracy"] = _per_label(losses.correct, losses.tokens, "higher")
        return measures | self.tasks


def score_model(
    loaded: LoadedModel,
    examples: Sequence[Example],
    asked: QuestionSet,
    tasks: Mapping[str, Task],
    *,
    batch_size: int = 16,
) -> ModelScores:
    """Score the model as it is now.

    examples: loaded with `texts=True`. asked: the rows that it answers, from `question_set(loaded,
        examples)`, or none. tasks: from `task.tasks_named`; give their references to
        `task.check_references` first.
    Raises: TrainingError if a loss is not finite; DataError if no row has a label.
    """
    losses = score(loaded.model, examples, batch=batch_size)
    if loaded.labels is not None:
        return ModelScores(losses, *_score_classes(loaded.labels, examples, losses, tasks))
    answers, notices = answer_questions(loaded, asked, batch_size=batch_size)
    references = [question.references for question in asked.questions]
    scores: dict[str, TaskScores] = {}
    for name, task in tasks.items() if answers else ():
        usable = np.array([can_score(task, question.row) for question in asked.questions])
        scores[name] = score_usable(task, answers, references, usable)
    return ModelScores(losses, answers, scores, notices)


def score_usable(
    task: Task, answers: Sequence[str], references: Sequence[Sequence[str]], usable: np.ndarray
) -> TaskScores:
    """The scores of the usable rows, and weight 0 for the others. usable: (R,) bool."""
    numbers = np.flatnonzero(usable).tolist()
    scores = task.score([answers[i] for i in numbers], [references[i] for i in numbers])
    if usable.all():
        return scores

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(answers), *values.shape[1:]), values.dtype)
        whole[numbers] = values
        return whole

    return replace(
        scores,
        rows=spread(scores.rows),
        weights=usable.astype(float),
        statistics=None if scores.statistics is None else spread(scores.statistics),
    )


def _score_classes(
    labels: list[str], examples: Sequence[Example], losses: Scores, tasks: Mapping[str, Task]
) -> tuple[list[str], dict[str, TaskScores]]:
    """(the class that is predicted for each row, the tasks on them)."""
    answers = [labels[i] for i in losses.probabilities.argmax(1).tolist()]
    references = [[labels[e.label or 0]] for e in examples]
    return answers, {name: task.score(answers, references) for name, task in tasks.items()}


def _per_label(sums: np.ndarray, tokens: np.ndarray, better: str) -> TaskScores:
    weights = tokens.astype(float)
    rows = np.divide(sums, weights, out=np.zeros(len(sums)), where=weights > 0)
    value = float(sums.sum() / weights.sum())
    return TaskScores(value, "lower" if better == "lower" else "higher", rows, weights)
