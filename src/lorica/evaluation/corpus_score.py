"""Scores of sacrebleu over a corpus, kept as sufficient statistics of each row.

sacrebleu's value for a corpus is a function of statistics that are summed over rows (n-gram
matches, lengths). So the value of any resample of the rows follows from their statistics, and texts
are read once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorica.evaluation.optional_package import import_package
from lorica.evaluation.task import Floats, Task, TaskScores


class CorpusScore(Task):
    """A task that is one of sacrebleu's metrics. kind: the name of its class there."""

    kind = ""
    unit = "score"

    def __init__(self) -> None:
        metrics: Any = import_package("sacrebleu.metrics", "sacrebleu", self.name)
        self._metric: Any = getattr(metrics, self.kind)()

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        most = max(map(len, references))
        # sacrebleu wants the first references of all rows, then the second ones, and so on.
        streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
        per_row = self._metric._extract_corpus_statistics(answers, streams)
        statistics = np.asarray(per_row, np.float64)
        signature = f"sacrebleu {self.kind}, {self._metric.get_signature()}"
        return TaskScores(
            float(self.combine(statistics.sum(0))),
            self.better,
            self.combine(statistics),
            statistics=statistics,
            notices=[signature],
        )

    def combine(self, totals: Floats) -> Floats:
        table = totals.reshape(-1, totals.shape[-1]).astype(int).tolist()
        values = [self._metric._compute_score_from_stats(row).score for row in table]
        return np.array(values).reshape(totals.shape[:-1])
