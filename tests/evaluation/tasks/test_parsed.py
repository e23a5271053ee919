"""Tasks that read something out of an answer: a class, a number, JSON."""

import json
from decimal import Decimal

import pytest

from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.errors import DataError
from lorica.evaluation.task import check_references, tasks_named
from lorica.evaluation.task_intervals import task_intervals
from lorica.evaluation.tasks.accuracy import Accuracy
from lorica.evaluation.tasks.f1 import F1
from lorica.evaluation.tasks.json import JsonF1
from lorica.evaluation.tasks.json_valid import JsonValid
from lorica.evaluation.tasks.numeric import Numeric, last_number


def test_classes_are_read_without_case_quotes_and_what_follows():
    answers = ["Positive.", '"negative"', "positive\nbecause", "not positive", ""]
    scores = Accuracy().score(
        answers, [["positive"], ["negative"], ["negative"]] + [["positive"]] * 2
    )
    assert scores.rows.tolist() == [True, True, False, False, False]
    assert scores.notices == ["answers that name no class of the references count as wrong: 2 of 5"]


def test_f1_is_the_mean_over_the_classes_of_the_rows():
    """By hand: a has 2 hits, 3 rows, 2 answers; b has 1 hit, 1 row, 2 answers; c is no class."""
    answers, own = ["a", "a", "b", "b", "c"], ["a", "a", "a", "b", "b"]
    scores = F1().score(answers, [[name] for name in own])
    by_hand = (2 * 2 / (3 + 2) + 2 * 1 / (2 + 2)) / 2
    assert scores.value == pytest.approx(by_hand)
    assert scores.rows.tolist() == [1, 1, 0, 1, 0]
    assert "1 of 5" in scores.notices[0]
    without_b = F1().combine(scores.statistics[:2].sum(0))
    assert float(without_b) == 1, "a class without rows is not in the mean"


def test_no_interval_of_f1_or_bleu_claims_certainty():
    """Without a hit, every resample has the same value; ten rows show no more than 0 to 28 %."""
    task = F1()
    none = task.score(["x"] * 10, [["a"], ["b"]] * 5)
    of_one, same, difference = task_intervals(task, [none, none])
    assert of_one.value == of_one.low == 0 and 0.2 < of_one.high < 0.35 and same == of_one
    assert difference.low == -difference.high < -0.2
    bleu = tasks_named("bleu")["bleu"]
    (interval,) = task_intervals(bleu, [bleu.score(["a b c d e"] * 10, [["a b c d e"]] * 10)])
    assert interval.value == pytest.approx(100) and 65 < interval.low < 80
    assert interval.high == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
        ("so 12 - 7 = 5", "5"),
        ("#### 70,000", "70000"),
        ("the answer is $1,234,567.50.", "1234567.5"),
        ("it is -3", "-3"),
        ("a loss of -$5", "-5"),
        ("from 5-3", "3"),
        ("at −2 degrees", "-2"),
        ("1,2", "2"),
        ("1,2345", "2345"),
        (".5 of it", "0.5"),
        ("3.", "3"),
        ("18 ####", "18"),
        ("#### 4 then #### 6", "6"),
        ("1.5e3", "1500"),
        ("50%", "50"),
        ("007", "7"),
        ("none", None),
        ("1e999999999999999999999", None),
        ("", None),
    ],
)
def test_the_last_number(text, number):
    value = last_number(text)
    assert (value is None) == (number is None)
    if number is not None:
        assert value == Decimal(number)


def test_numeric_compares_values():
    scores = Numeric().score(
        ["It is 18.0", "1,000 dollars", "I do not know", "5"],
        [["#### 18"], ["1000"], ["3"], ["4", "5"]],
    )
    assert scores.rows.tolist() == [True, True, False, True]
    assert scores.notices == ["answers without a number count as wrong: 1 of 4"]


FULL = {"a": {"b": 1, "c": "x"}, "tags": ["p", "q", "q"], "items": [{"n": 1}, {"n": 2}], "e": {}}


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        (json.dumps(FULL), json.dumps(FULL, indent=2), 1.0),
        ('{"b": 2, "a": 1}', '{"a": 1.0, "b": 20e-1}', 1.0),
        ('{"a": 1}', '{"a": "1"}', 0.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": 0}', '{"a": false}', 0.0),
        ('{"a": null}', '{"a": null}', 1.0),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
        ('{"a": 1, "a": 2}', '{"a": 1}', 2 / 3),
        ('{"t": ["q", "p"]}', '{"t": ["p", "q"]}', 1.0),
        ('{"t": ["p"]}', '{"t": ["p", "p"]}', 2 / 3),
        ('[{"a": 1, "b": 4}, {"a": 3, "b": 2}]', '[{"a": 1, "b": 2}, {"a": 3, "b": 4}]', 0.5),
        ('{"a": {}}', '{"a": []}', 0.0),
        ("{}", "{}", 1.0),
        ('{"a.b": 1}', '{"a": {"b": 1}}', 0.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 0.0),
        ('{"a": 1} and more', '{"a": 1}', 0.0),
        ('{"a": NaN}', '{"a": 1}', 0.0),
        ("[" * 100_000, '{"a": 1}', 0.0),
        ('{"a": ' + "9" * 5000 + "}", '{"a": 1}', 0.0),
    ],
)
def test_json_field_f1(answer, reference, f1):
    assert JsonF1().score([answer], [[reference]]).value == pytest.approx(f1)


def test_json_counts_what_does_not_parse():
    answers = ['{"a": 1}', "{'a': 1}", '{"a": 1']
    scores = JsonF1().score(answers, [['{"a": 1}', "no"]] * 3)
    assert scores.rows.tolist() == [1, 0, 0]
    assert scores.notices == ["answers that are no valid JSON count as wrong: 2 of 3"]
    assert JsonValid().score(answers, [["x"]] * 3).rows.tolist() == [True, False, False]


def rows(*references):
    return [
        RenderedRow("prompt", (TextSpan("q", False), TextSpan(text, True)), False, where=f"t:{i}")
        for i, text in enumerate(references, 1)
    ]


def test_references_are_checked_before_an_answer_is_written():
    tasks = tasks_named(["numeric", "json", "exact_match"])
    assert check_references(tasks, rows('{"a": 1}', "[2]")) == []
    (notice,) = check_references(tasks_named(["numeric"]), rows("4", "four", "5"))
    assert notice == "numeric leaves out 1 row whose reference lacks a number: t:2"
    with pytest.raises(DataError, match="task json: none of the references of 2 rows") as caught:
        check_references(tasks, rows("it is 4", "or 5"))
    assert "t:1: 'it is 4'" in str(caught.value)
