"""Tasks that compare texts: against the libraries' own figures, and by hand."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lorica.cli.eval import evaluate
from lorica.errors import ConfigError, MissingError
from lorica.evaluation.task import Task, tasks_named
from lorica.evaluation.tasks.bleu import Bleu
from lorica.evaluation.tasks.character_accuracy import CharacterAccuracy
from lorica.evaluation.tasks.chrf import Chrf
from lorica.evaluation.tasks.exact_match import ExactMatch
from lorica.evaluation.tasks.rouge_l import RougeL

ROOT = Path(__file__).parents[3]
ANSWERS = [
    "The Blue Spice is a coffee shop by the river.",
    "There is a pub near Burger King in the city centre",
    "",
    "Zwei junge weiße Männer sind im Freien.",
]
REFERENCES = [
    ["Blue Spice is a coffee shop in the riverside area.", "By the river is a coffee shop."],
    ["In the city centre, near Burger King, there is a pub."],
    ["A man sits.", "A man is sitting.", "There sits a man."],
    ["Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."],
]


def streams():
    most = max(map(len, REFERENCES))
    return [[r[i] if i < len(r) else None for r in REFERENCES] for i in range(most)]


@pytest.mark.parametrize(
    ("task", "corpus"), [(Bleu, sacrebleu.corpus_bleu), (Chrf, sacrebleu.corpus_chrf)]
)
def test_bleu_and_chrf_are_those_of_sacrebleu(task, corpus):
    scores = task().score(ANSWERS, REFERENCES)
    assert 0 < scores.value < 100
    assert scores.value == pytest.approx(corpus(ANSWERS, streams()).score, abs=1e-12)
    assert scores.value == pytest.approx(float(task().combine(scores.statistics.sum(0))))
    assert "nrefs:var" in scores.notices[0] and "version:" in scores.notices[0]


@pytest.mark.parametrize("task", [Bleu, Chrf])
def test_the_statistics_of_some_rows_give_the_score_of_those_rows(task):
    statistics = task().score(ANSWERS, REFERENCES).statistics
    kept = [0, 1, 1, 3]
    alone = task().score([ANSWERS[i] for i in kept], [REFERENCES[i] for i in kept])
    counts = np.array([[1.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    several = task().combine(counts @ statistics)
    assert several[0] == pytest.approx(alone.value)
    assert several[1] == pytest.approx(task().score(ANSWERS, REFERENCES).value)


def test_rouge_l_is_that_of_rouge_score():
    scorer = RougeScorer(["rougeL"])
    own = [
        scorer.score_multi(texts, answer)["rougeL"].fmeasure
        for answer, texts in zip(ANSWERS, REFERENCES, strict=True)
    ]
    scores = RougeL().score(ANSWERS, REFERENCES)
    assert scores.rows.tolist() == own
    assert scores.value == pytest.approx(np.mean(own))
    assert "1 of 4 rows have letters beyond a to z" in scores.notices[0]
    assert not RougeL().score(ANSWERS[:3], REFERENCES[:3]).notices
    assert not RougeL().can_score("мы")


def test_exact_match_ignores_white_space_at_the_ends():
    scores = ExactMatch().score([" a b\n", "a  b", "c"], [["a b"], ["a b"], ["x", " c "]])
    assert scores.rows.tolist() == [True, False, True]
    assert scores.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "references", "share"),
    [
        ("abcd", ["abcd"], 1.0),
        ("abxd", ["abcd"], 0.75),
        ("abcdef", ["abcd"], 4 / 6),
        ("ab", ["abcd"], 0.5),
        ("", ["abcd"], 0.0),
        ("bcd", ["abcd", "bce"], 2 / 3),
    ],
)
def test_character_accuracy(answer, references, share):
    assert CharacterAccuracy().score([answer], [references]).value == pytest.approx(share)


def test_bleu_counts_references_without_spaces():
    scores = Bleu().score(
        ["两个年轻人在外面", "Two men"], [["两个年轻的白人男子"], ["Two 北京 men"]]
    )
    assert "1 of 2 rows are in a script without spaces" in scores.notices[1]


def test_every_task_is_in_the_help_and_in_the_guide():
    guide = (ROOT / "docs/guides/evaluation.md").read_text()
    for name in Task.names():
        assert name == "exact_match" or re.search(rf"\b{name}\b", evaluate.__doc__ or "")
        assert f"`{name}`" in guide


def test_a_task_is_its_file():
    names = Task.names()
    assert {"exact_match", "f1", "bleu", "chrf", "rouge_l", "numeric", "json"} <= set(names)
    assert [task.name for task in tasks_named(names).values()] == names
    assert list(tasks_named(["bleu", "numeric", "bleu"])) == ["bleu", "numeric"]
    assert list(tasks_named("bleu, numeric,")) == ["bleu", "numeric"]
    with pytest.raises(ConfigError, match="no task 'blue'") as caught:
        tasks_named(["blue"])
    assert "bleu" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("bleu", "sacrebleu.metrics", "sacrebleu"),
        ("rouge_l", "rouge_score.rouge_scorer", "rouge-score"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match=package) as caught:
        tasks_named([name])
    assert 'pip install "lorica[tasks]"' in str(caught.value)
