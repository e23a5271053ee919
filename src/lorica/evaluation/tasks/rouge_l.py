"""ROUGE-L: the longest common subsequence of words, as F1 of each row; the mean over rows.

Computed by the package rouge-score, without stemming. With several references the best counts. Its
words are runs of the letters a to z and of digits, in lower case: other scripts are not scored, and
words with accents are cut at them.

Source: Lin, "ROUGE: A package for automatic evaluation of summaries", 2004, W04-1013.
"""

from collections.abc import Sequence
from typing import Any

from lorica.errors import counted
from lorica.evaluation.optional_package import import_package
from lorica.evaluation.task import Task, TaskScores


class RougeL(Task, name="rouge_l"):
    needs = "a word of the letters a to z"

    def __init__(self) -> None:
        rouge: Any = import_package("rouge_score.rouge_scorer", "rouge-score", "rouge_l")
        self._scorer = rouge.RougeScorer(["rougeL"], use_stemmer=False)

    def can_score(self, reference: str) -> bool:
        return any(c.isascii() and c.isalnum() for c in reference.lower())

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        pairs = zip(answers, references, strict=True)
        scores = [self._scorer.score_multi(texts, a)["rougeL"].fmeasure for a, texts in pairs]
        result = self.means(scores)
        cut = sum(any(_has_other_letters(text) for text in texts) for texts in references)
        if cut:
            result.notices.append(
                f"{cut:,} of {counted(len(references), 'row')} have letters beyond a to z, which "
                "ROUGE does not know: their words are cut or missing; chrf scores them whole"
            )
        return result


def _has_other_letters(text: str) -> bool:
    return any(c.isalpha() and not c.isascii() for c in text)
