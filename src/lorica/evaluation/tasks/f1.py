"""Macro F1 of classes that are written as text: the mean F1 over the classes of the references.

Classes are read as in `accuracy`. An answer that is no class is a miss of the row's class, and
nothing else. F1 = 2 TP / (2 TP + FP + FN) = 2 TP / (rows of the class + answers with the class).

Letters: R rows, C classes; K = 3 C statistics: hits, rows and answers of each class.
"""

from collections.abc import Sequence

import numpy as np

from lorica.evaluation.task import Floats, Task, TaskScores
from lorica.evaluation.tasks.accuracy import class_of


class F1(Task, name="f1"):
    needs = "a class"
    unread = "that name no class of the references"

    def can_score(self, reference: str) -> bool:
        return bool(class_of(reference))

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        accepted = [[class_of(text) for text in texts] for texts in references]
        written = [class_of(answer) for answer in answers]
        # Of several right classes, the one that was written counts as the row's own.
        own = [w if w in names else names[0] for w, names in zip(written, accepted, strict=True)]
        number = {name: i for i, name in enumerate(sorted({n for row in accepted for n in row}))}
        statistics = np.zeros((len(own), 3, len(number)))
        for i, (right, name) in enumerate(zip(own, written, strict=True)):
            statistics[i, 0, number[right]] = right == name
            statistics[i, 1, number[right]] = 1
            if name in number:
                statistics[i, 2, number[name]] = 1
        unread = sum(name not in number for name in written)
        table = statistics.reshape(len(own), -1)
        return TaskScores(
            float(self.combine(table.sum(0))),
            self.better,
            statistics[:, 0].sum(1),
            statistics=table,
            notices=self.unread_notices(unread, len(own)),
        )

    def combine(self, totals: Floats) -> Floats:
        hits, rows, answers = np.moveaxis(totals.reshape(*totals.shape[:-1], 3, -1), -2, 0)
        f1 = 2 * hits / np.maximum(rows + answers, 1)
        present = rows > 0
        return np.where(present, f1, 0.0).sum(-1) / np.maximum(present.sum(-1), 1)
