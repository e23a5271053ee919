"""Empty answers, different answers to one prompt, and answers without structure."""

import json
import random

import numpy as np
import pytest

from lorica.data.answers import Answers, answer_ranges, check_answers, structure
from lorica.data.check import check
from lorica.data.config import DataConfig
from lorica.data.pipeline import tokenise_file
from lorica.data.token_store import TokenStore
from tests.data.tokenizers import sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece()


@pytest.fixture
def answers(tmp_path, tokenizer):
    def of(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(path=str(path), **settings)
        return check_answers(tokenise_file(config, tokenizer, seed=0), tokenizer)

    return of


def row(prompt, completion, **more):
    return {"prompt": prompt, "completion": completion, **more}


def test_different_answers_to_one_prompt_are_counted(answers):
    result = answers(
        row("red?", " yes"), row("big?", " no"), row("big?", " yes"), row("big?", " no")
    )
    assert (result.prompts, result.rows, result.first) == (1, 3, "rows.jsonl:2")


def test_the_same_row_twice_is_no_conflict(answers):
    assert answers(row("red?", " yes"), row("red?", " yes")).prompts == 0


def test_another_condition_is_another_prompt(answers):
    rows = [row("red?", " yes", condition="a"), row("red?", " no", condition="b")]
    assert answers(*rows).prompts == 0


def test_two_classes_of_one_text_are_a_conflict(answers):
    rows = [{"text": "fine", "label": label} for label in ("good", "bad", "good")]
    result = answers(*rows, {"text": "other", "label": "bad"})
    assert (result.prompts, result.rows, result.empty) == (1, 3, 0)


def test_plain_text_has_no_prompts(answers):
    assert answers({"text": "red ball"}, {"text": "red box"}) == type(answers({"text": "a"}))()


def test_whole_rows_that_are_learned_have_no_prompts(answers):
    assert answers(row("red", " yes"), row("red", " no"), completion_only=False).prompts == 0


def test_empty_answers_are_counted(answers):
    result = answers(row("red?", ""), row("big?", "  "), row("why?", " yes"))
    assert result.empty == 2


def test_the_last_answer_of_a_row_counts():
    """Earlier answers belong to the prompt; the second row has no answer."""
    starts, runs = np.array([0, 10, 20, 30]), np.array([[2, 4], [6, 10], [25, 30]])
    store = TokenStore({"starts": starts, "runs": runs}, {})
    assert list(zip(*answer_ranges(store), strict=True)) == [(0, 6, 10), (10, 20, 20), (20, 25, 30)]


def letters(source, count):
    return "".join(source.choice("abcdefghijklmnop") for _ in range(count))


def test_random_answers_have_no_structure():
    source = random.Random(0)
    assert structure([(letters(source, 6), letters(source, 12)) for _ in range(400)]) > 1.1


def test_copied_answers_have_structure():
    source = random.Random(0)
    names = [letters(source, 12) for _ in range(400)]
    assert structure([(f"The name is {name}", name) for name in names]) < 0.5


def test_language_has_structure():
    source = random.Random(0)
    words = [letters(source, source.randint(2, 8)) for _ in range(40)]
    texts = [" ".join(source.choice(words) for _ in range(12)) for _ in range(200)]
    assert structure([("Write.", text) for text in texts]) < 0.9


@pytest.mark.parametrize(
    "pairs",
    [[("a", "too short")], [("2 + 2", "4 ")] * 4000, [("a", "a")] * 5000],
    ids=["short", "numbers", "one letter"],
)
def test_structure_is_not_judged(pairs):
    assert structure(pairs) is None


def test_check_reports_them(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    rows = [row("red?", " yes"), row("red?", " no"), row("big?", "")] + [
        row(f"what is {i}?", " box") for i in range(5)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    report = check(DataConfig(path=str(path)), tokenizer, seed=0, max_length=None)
    assert report.answers == Answers(1, 1, 2, "a.jsonl:1", None)
    notice = "a.jsonl: different answers to one prompt: 1 prompt, 2 rows; a.jsonl:1 is the first"
    assert notice in report.notices
