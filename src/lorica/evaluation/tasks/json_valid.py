"""JSON validity: the share of answers that are JSON (RFC 8259) from the first character to the
last. Text or a code fence around it makes an answer invalid, as it does for the program that reads
it.
"""

from collections.abc import Sequence

from lorica.evaluation.json_fields import parse
from lorica.evaluation.task import Task, TaskScores


class JsonValid(Task, name="json_valid"):
    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        return self.means([parse(answer) is not None for answer in answers])
