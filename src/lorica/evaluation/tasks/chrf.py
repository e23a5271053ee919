"""chrF2 over all rows, by sacrebleu with its standard settings: F2 of character 1- to 6-grams.

It is a score of the corpus, from 0 to 100, and no mean over rows.

Source: Popovic, "chrF: character n-gram F-score for automatic MT evaluation", 2015, W15-3049.
"""

from lorica.evaluation.corpus_score import CorpusScore


class Chrf(CorpusScore, name="chrf"):
    kind = "CHRF"
