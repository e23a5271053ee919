"""What each system predicts for every row: one JSON object each, for a file beside the results.

    where, text, wanted, base {label, probability, right, loss}, adapter {...}       classes
    where, tokens, prompt, wanted, references, base {loss, answer, right, scores}, ...   text

loss: nats per label of the row. answer, right: of rows with a prompt, if the model answers them.
scores: of the tasks, by name; null where a task leaves the row out.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorica.data.example import Example
from lorica.evaluation.loss import Scores
from lorica.evaluation.questions import QuestionSet
from lorica.evaluation.score_model import ModelScores
from lorica.evaluation.tasks.exact_match import is_match
from lorica.formats import commit

SYSTEMS = ("base", "adapter")


def text_rows(
    examples: Sequence[Example], scored: Sequence[ModelScores], asked: QuestionSet
) -> list[dict[str, Any]]:
    """One object for each row of a language model. scored: each system."""
    number_of = {id(question.row): n for n, question in enumerate(asked.questions)}
    tokens, rows = scored[0].losses.tokens, []
    for i, example in enumerate(examples):
        row: dict[str, Any] = {"where": example.where, "tokens": int(tokens[i])}
        systems = [{"loss": _loss(s.losses, i)} for s in scored]
        n = number_of.get(id(example.source))
        if n is not None:
            question = asked.questions[n]
            row |= {"prompt": question.row.prompt, "wanted": question.reference}
            if len(question.references) > 1:
                row["references"] = question.references
            for system, own in zip(systems, scored, strict=True):
                right = is_match(own.answers[n], question.references)
                system |= {"answer": own.answers[n], "right": right, **_task_scores(own, n)}
        elif example.source is not None:
            row["text"] = example.source.text
        rows.append(row | dict(zip(SYSTEMS, systems, strict=False)))
    return rows


def _task_scores(system: ModelScores, n: int) -> dict[str, Any]:
    """What the tasks give for answer n, other than whether it is right."""
    scores = {
        name: round(float(own.rows[n]), 6) if own.weights is None or own.weights[n] else None
        for name, own in system.tasks.items()
        if name != "exact_match"
    }
    return {"scores": scores} if scores else {}


def class_rows(
    examples: Sequence[Example], scores: Sequence[Scores], labels: list[str]
) -> list[dict[str, Any]]:
    """One object for each row of a classifier. scores: of each system."""
    rows = []
    for i, example in enumerate(examples):
        text = example.source.text if example.source is not None else None
        row: dict[str, Any] = {"where": example.where, "text": text}
        if example.label is not None:
            row["wanted"] = labels[example.label]
        for name, system in zip(SYSTEMS, scores, strict=False):
            measured = {"right": bool(system.correct[i]), "loss": _loss(system, i)}
            row[name] = most_probable(system.probabilities[i], labels) | measured
        rows.append(row)
    return rows


def most_probable(probabilities: NDArray[np.float32], labels: list[str]) -> dict[str, Any]:
    """The most probable class of a row, and its probability."""
    best = int(probabilities.argmax())
    return {"label": labels[best], "probability": round(float(probabilities[best]), 6)}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row: the whole file, or the old one stays. Raises: ResourceError."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    commit.write_text(path, "".join(f"{line}\n" for line in lines))


def _loss(scores: Scores, i: int) -> float | None:
    tokens = int(scores.tokens[i])
    return round(float(scores.nll[i]) / tokens, 6) if tokens else None
