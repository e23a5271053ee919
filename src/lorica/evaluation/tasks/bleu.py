"""BLEU over all rows, by sacrebleu with its standard settings (13a tokens, case kept).

It is a score of the corpus, from 0 to 100, and no mean over rows. Its words are separated by
spaces: for languages without them, use chrf.

Source: Post, "A call for clarity in reporting BLEU scores", 2018, arXiv:1804.08771.
"""

from lorica.evaluation.corpus_score import CorpusScore


class Bleu(CorpusScore, name="bleu"):
    kind = "BLEU"
