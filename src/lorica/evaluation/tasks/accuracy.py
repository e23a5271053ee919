"""Accuracy of classes that are written as text, such as "positive".

The classes are the references of all rows. The class of an answer is its first line, without case
and without punctuation or quotes around it. An answer that is no class counts as wrong.
"""

import string
from collections.abc import Sequence

from lorica.evaluation.task import Task, TaskScores

AROUND = string.whitespace + string.punctuation + "“”„‘’«»。"


def class_of(text: str) -> str:
    """The class that a text names, ready to compare; "" if it is empty."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line.strip(AROUND).casefold() or line.strip().casefold()


class Accuracy(Task, name="accuracy"):
    needs = "a class"
    unread = "that name no class of the references"

    def can_score(self, reference: str) -> bool:
        return bool(class_of(reference))

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        accepted = [{class_of(text) for text in texts} for texts in references]
        classes, written = set().union(*accepted), [class_of(answer) for answer in answers]
        unread = sum(name not in classes for name in written)
        return self.means([w in a for w, a in zip(written, accepted, strict=True)], unread)
