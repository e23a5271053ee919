"""Exact match: the share of answers that equal a reference; white space at the ends is ignored."""

from collections.abc import Sequence

from lorica.evaluation.task import Task, TaskScores


def is_match(answer: str, references: Sequence[str]) -> bool:
    return answer.strip() in [reference.strip() for reference in references]


class ExactMatch(Task, name="exact_match"):
    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        return self.means([is_match(a, r) for a, r in zip(answers, references, strict=True)])
