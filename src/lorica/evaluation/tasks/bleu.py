"""BLEU over all rows, by sacrebleu with its standard settings (13a tokens, case kept).

It is a score of the corpus, from 0 to 100, and no mean over rows. Its words are separated by
spaces; a notice counts references in scripts that have none, for which chrf is right.

Source: Post, "A call for clarity in reporting BLEU scores", 2018, arXiv:1804.08771.
"""

import re
from collections.abc import Sequence

from lorica.errors import counted
from lorica.evaluation.corpus_score import CorpusScore
from lorica.evaluation.task import TaskScores

WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{6}"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese: six letters in a row."""


class Bleu(CorpusScore, name="bleu"):
    kind = "BLEU"

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        scores = super().score(answers, references)
        whole = sum(any(WITHOUT_SPACES.search(text) for text in texts) for texts in references)
        if whole:
            scores.notices.append(
                f"{whole:,} of {counted(len(references), 'row')} are in a script without spaces, "
                "whose sentences BLEU takes for single words; chrf compares their characters"
            )
        return scores
