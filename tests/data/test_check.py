"""`lorica check` reports on the rows of a training, and lists errors as problems."""

import json

import numpy as np
import pytest
from rich.console import Console

from lorica.data.check import check, histogram, print_report
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.errors import DataError
from tests.data.tokenizers import sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece()


@pytest.fixture
def config(tmp_path):
    rows = [{"prompt": f"[INST] {i}?\n", "completion": f"It is {i}."} for i in range(20)]
    rows += [rows[0], {"prompt": "Why?\n", "completion": ""}]
    rows += [{"prompt": "Long?\n", "completion": "yes " * 100}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path))


def printed(report, color=None):
    console = Console(width=100, color_system=color, force_terminal=color is not None)
    with console.capture() as capture:
        print_report(report, console)
    return capture.get()


def test_rows_are_counted(config, tokenizer):
    config = config.model_copy(update={"overlong": "truncate", "validation": 0.1})
    report = check(config, tokenizer, seed=0, max_length=60)
    data = load_data(config, tokenizer, seed=0, max_length=60)
    assert (report.train, report.validation) == (len(data.train), len(data.validation)) == (20, 2)
    assert report.kinds == {"prompt": 23}
    assert (report.rows, report.duplicates, report.unlearned) == (23, 1, 1)
    assert (report.overlong, report.truncated, report.dropped) == (1, 1, 0)
    assert sum(rows for _, _, rows in report.histogram) == 22  # as trained on
    assert 0 < report.label_share < 1
    assert report.notices == data.notices and report.problems == []
    assert json.loads(json.dumps(report.as_dict()))["rows"] == 23


def test_overlong_rows_are_a_problem_of_the_report(config, tokenizer):
    report = check(config, tokenizer, seed=0, max_length=60)
    assert report.overlong == 1 and report.policy == "raise"
    assert len(report.problems) == 1 and "1 of 23 rows are longer than 60" in report.problems[0]
    assert "problem: " in printed(report)


def test_rows_without_labels_are_a_problem_of_the_report(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n')
    report = check(DataConfig(path=str(path)), tokenizer, seed=0, max_length=60)
    assert "no row has an answer" in report.problems[0]
    assert report.label_share == 0 and printed(report)


def test_a_long_prompt_does_not_hide_the_answer(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    row = {"prompt": "first " + "why " * 2000 + "last\n", "completion": "It is so."}
    path.write_text(json.dumps(row) + "\n")
    report = check(DataConfig(path=str(path), validation=0), tokenizer, seed=0, max_length=None)
    text = " ".join(printed(report).split())
    assert "first" in text and "last" in text and "tokens ...]" in text
    assert "It is so." in text and len(text) < 2500


def test_a_long_conversation_shows_its_first_and_last_turns(tokenizer):
    from lorica.data.check import MAX_PIECES, sample
    from lorica.data.example import Example

    ids = tokenizer("red ball " * 40)["input_ids"]
    learned = [(i // 2) % 2 == 1 for i in range(len(ids))]
    long_sample = sample(Example(ids, learned, "a.jsonl:1"), tokenizer, None)
    assert len(long_sample.pieces) == MAX_PIECES + 1
    assert "more pieces" in long_sample.pieces[MAX_PIECES // 2][0]


def test_the_histogram_is_of_the_rows_that_are_trained_on(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("red ball " * 500)
    config = DataConfig(path=str(path), overlong="split", validation=0)
    report = check(config, tokenizer, seed=0, max_length=50)
    assert report.histogram[-1][1] <= 60 and sum(n for _, _, n in report.histogram) > 5


def test_the_loss_mask_is_printed_with_and_without_colour(config, tokenizer):
    report = check(config, tokenizer, seed=0, max_length=None)
    text = printed(report)
    assert "«It is 0.</s>»" in text.replace("« ", "«")
    assert "[INST] 0?" in text  # not taken for rich's markup
    assert "\x1b[32m«" in printed(report, color="standard")


def test_a_sample_has_every_token_once(config, tokenizer):
    report = check(config, tokenizer, seed=0, max_length=None)
    (prompt, first), (answer, second) = report.samples[0].pieces
    assert (first, second) == (False, True)
    assert "[INST] 0?" in prompt and answer.endswith("</s>")


def test_classes_are_counted(tmp_path, tokenizer):
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood,pos\nbad,neg\nfine,pos\n")
    report = check(DataConfig(path=str(path)), tokenizer, seed=0, max_length=None)
    assert report.classes == {"pos": 2, "neg": 1}
    assert report.samples[0].label == "pos"
    assert "classes" in printed(report) and "pos 2, neg 1" in printed(report)


def test_invalid_rows_raise(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": 1, "completion": "a"}\n')
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        check(DataConfig(path=str(path)), tokenizer, seed=0, max_length=None)


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 10, 11, 100], [0, 3]])
def test_the_histogram_has_every_row_in_one_bin(lengths):
    bins = histogram(np.array(lengths))
    assert sum(rows for _, _, rows in bins) == len(lengths)
    assert all(rows == sum(start <= max(n, 1) <= end for n in lengths) for start, end, rows in bins)
