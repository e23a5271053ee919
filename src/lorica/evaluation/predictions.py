"""What became of every row: one JSON object each, for a file beside the results.

    where, text, wanted, base {label, probability, right, loss}, adapter {...}       classes
    where, tokens, prompt, wanted, references, base {loss, answer, right}, adapter {...}   text

loss: nats per label of the row. answer and right: of rows that were asked.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorica.data.example import Example
from lorica.evaluation.answers import Quiz
from lorica.evaluation.loss import Scores
from lorica.formats import commit

NAMES = ("base", "adapter")


def predictions(
    examples: Sequence[Example],
    scores: Sequence[Scores],
    labels: list[str] | None,
    asked: Quiz,
    answers: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """One object for each row, in the order of the rows. scores, answers: of each system."""
    if labels is not None:
        return [_of_class(examples[i], i, scores, labels) for i in range(len(examples))]
    number_of = {id(question.row): n for n, question in enumerate(asked.questions)}
    found = []
    for i, example in enumerate(examples):
        row: dict[str, Any] = {"where": example.where, "tokens": int(scores[0].tokens[i])}
        systems = [{"loss": _loss(s, i)} for s in scores]
        n = number_of.get(id(example.source))
        if n is not None:
            question = asked.questions[n]
            row |= {"prompt": question.row.prompt, "wanted": question.wanted}
            if len(question.references) > 1:
                row["references"] = question.references
            for system, said in zip(systems, answers, strict=True):
                system |= {"answer": said[n], "right": question.is_right(said[n])}
        elif example.source is not None:
            row["text"] = example.source.text
        found.append(row | dict(zip(NAMES, systems, strict=False)))
    return found


def _of_class(
    example: Example, i: int, scores: Sequence[Scores], labels: list[str]
) -> dict[str, Any]:
    text = example.source.text if example.source is not None else None
    row: dict[str, Any] = {"where": example.where, "text": text}
    if example.label is not None:
        row["wanted"] = labels[example.label]
    for name, system in zip(NAMES, scores, strict=False):
        told = choice(system.probabilities[i], labels)
        row[name] = told | {"right": bool(system.correct[i]), "loss": _loss(system, i)}
    return row


def choice(probabilities: NDArray[np.float32], labels: list[str]) -> dict[str, Any]:
    """The most probable class of a row, and how probable it is."""
    best = int(probabilities.argmax())
    return {"label": labels[best], "probability": round(float(probabilities[best]), 6)}


def _loss(scores: Scores, i: int) -> float | None:
    tokens = int(scores.tokens[i])
    return round(float(scores.nll[i]) / tokens, 6) if tokens else None


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row: the whole file, or the old one stays. Raises: ResourceError."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    commit.write_text(path, "".join(f"{line}\n" for line in lines))
