"""Field F1 of JSON answers: of each row, then the mean over rows; with several references the best.

F1 = 2 (equal fields) / (fields of the answer + fields of the reference). An answer that is no JSON
has 0. `lorica.evaluation.json_fields` says what a field is; `json_valid` measures validity alone.
"""

from collections import Counter
from collections.abc import Sequence

from lorica.evaluation.json_fields import Field, fields_of, parse
from lorica.evaluation.task import Task, TaskScores


class JsonF1(Task, name="json"):
    needs = "valid JSON"
    unread = "that are no valid JSON"

    def can_score(self, reference: str) -> bool:
        return parse(reference) is not None

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        written = [_fields(answer) for answer in answers]
        scores = [
            max(_f1(own, wanted) for text in texts if (wanted := _fields(text)) is not None)
            for own, texts in zip(written, references, strict=True)
        ]
        return self.means(scores, written.count(None))


def _fields(text: str) -> Counter[Field] | None:
    parsed = parse(text)
    return None if parsed is None else fields_of(parsed.value)


def _f1(answer: Counter[Field] | None, reference: Counter[Field]) -> float:
    if answer is None:
        return 0.0
    return 2 * (answer & reference).total() / (answer.total() + reference.total())
