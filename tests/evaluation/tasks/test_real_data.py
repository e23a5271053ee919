"""Tasks on real rows: the libraries' own figures, and references that match themselves."""

import csv
import gzip
import json
import random
from collections import defaultdict

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lorica.evaluation.task import tasks_named
from lorica.evaluation.tasks.numeric import Numeric, last_number


def shortened(text, draw):
    """An answer that is like its reference: three of four words."""
    return " ".join(word for word in text.split() if draw.random() < 0.75)


def e2e_rows(shared, count):
    """Answers like a reference, and the other references: from none to over 20 of them."""
    references = defaultdict(list)
    with (shared / "data/nlg/e2e_nlg/testset_w_refs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            references[row["mr"]].append(row["ref"])
    draw = random.Random(0)
    groups = list(references.values())[:count]
    return [shortened(texts[0], draw) for texts in groups], [t[1:] or t for t in groups]


def german_rows(shared, count):
    with gzip.open(shared / "data/translate/multi30k/test_2016_flickr.de.gz", "rt") as file:
        texts = file.read().splitlines()[:count]
    draw = random.Random(0)
    return [shortened(text, draw) for text in texts], [[text] for text in texts]


@pytest.mark.parametrize("rows", [e2e_rows, german_rows])
def test_scores_are_those_of_the_libraries_corpus_functions(shared, rows):
    answers, references = rows(shared, 60)
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    scores = {n: t.score(answers, references) for n, t in tasks_named("bleu,chrf,rouge_l").items()}
    assert scores["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score)
    assert scores["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(answers, streams).score)
    scorer = RougeScorer(["rougeL"])
    own = [
        scorer.score_multi(texts, answer)["rougeL"].fmeasure
        for answer, texts in zip(answers, references, strict=True)
    ]
    assert scores["rouge_l"].value == pytest.approx(np.mean(own))
    assert min(score.value for score in scores.values()) > 0.3


@pytest.mark.parametrize(("name", "count"), [("test", 1319), ("train", 7473)])
def test_every_answer_of_gsm8k_has_a_number_and_matches_itself(shared, name, count):
    lines = (shared / f"data/instruct/gsm8k/{name}.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    behind = [text.split("####")[1].strip().replace(",", "") for text in answers]
    assert [str(last_number(text)) for text in answers] == behind
    assert Numeric().score(answers, [[text] for text in behind]).value == 1
    assert len(answers) == count
