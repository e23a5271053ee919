"""Training and validation examples of a file: length limit, split, repeated rows, classes."""

import json
import random

import pytest

from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError
from tests.data.tokenizers import sentencepiece, wordpiece


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece()


@pytest.fixture
def write(tmp_path):
    def write(rows, name="a.jsonl", **settings):
        path = tmp_path / name
        text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        path.write_text(text)
        return DataConfig(path=str(path), **settings)

    return write


def asks(n):
    return [{"prompt": f"What is {i}?\n", "completion": f"It is {i}."} for i in range(n)]


def get(config, tokenizer, seed=0, max_length=None, **rest):
    return load_data(config, tokenizer, seed=seed, max_length=max_length, texts=True, **rest)


MIXED = [*asks(4), {"prompt": "Long?\n", "completion": "yes " * 100}]


def test_overlong_raises_by_default(write, tokenizer):
    with pytest.raises(DataError, match="1 of 5 rows are longer than 40 tokens") as error:
        get(write(MIXED), tokenizer, max_length=40)
    assert "a.jsonl:5" in str(error.value)
    assert "longest" in error.value.facts and "overlong" in error.value.fix


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_a_longer_length_is_a_fix_only_where_one_was_set(write, tokenizer, policy):
    """Without data.max_length the limit is the base's, and cannot be raised."""
    long = [{"prompt": "Long?\n", "completion": "yes " * 100}] * 3
    for own, suggested in (({"max_length": 40}, True), ({}, False)):
        with pytest.raises(DataError) as error:
            get(write(long, overlong=policy, **own), tokenizer, max_length=40)
        assert ("max_length" in error.value.fix) is suggested and "overlong" in error.value.fix


def test_overlong_is_dropped_and_counted(write, tokenizer):
    data = get(write(MIXED, overlong="drop", validation=0), tokenizer, max_length=40)
    assert len(data.train) == 4
    assert data.notices == [
        "a.jsonl: 1 of 5 rows are longer than 40 tokens and are dropped: a.jsonl:5"
    ]


def test_overlong_is_truncated_and_counted(write, tokenizer):
    whole = get(write(MIXED, validation=0), tokenizer).train
    data = get(write(MIXED, overlong="truncate", validation=0), tokenizer, max_length=40)
    assert data.train[4].ids == whole[4].ids[:40]
    assert data.train[4].learned == whole[4].learned[:40]
    assert data.train[:4] == whole[:4]
    assert "1 of 5 rows are longer than 40 tokens and lose their ends" in data.notices[0]


def test_a_row_whose_labels_are_cut_off_is_dropped_and_counted(write, tokenizer):
    rows = [*asks(2), {"prompt": "why " * 100 + "\n", "completion": "So."}]
    data = get(write(rows, overlong="truncate", validation=0), tokenizer, max_length=40)
    assert len(data.train) == 2
    assert data.notices[1] == "a.jsonl: 1 rows have nothing to learn and are dropped: a.jsonl:3"


def test_text_is_split_into_consecutive_blocks(write, tokenizer):
    config = write("Once upon a time. " * 100, name="a.txt", validation=0)
    (whole,) = get(config, tokenizer, max_length=10_000).train
    data = get(config, tokenizer, max_length=64)
    assert [i for e in data.train for i in e.ids] == whole.ids
    assert {len(e.ids) for e in data.train[:-1]} == {64}
    assert all(e.learned == [False] + [True] * (len(e.ids) - 1) for e in data.train)
    assert data.train[1].where == "a.txt tokens 64-127"
    assert "are split: " in data.notices[0]


def test_splitting_answers_is_refused(write, tokenizer):
    with pytest.raises(ConfigError, match="only plain text"):
        get(write(asks(3), overlong="split"), tokenizer, max_length=4)


def test_a_length_beyond_the_base_is_refused(write, tokenizer):
    with pytest.raises(ConfigError, match="the base takes 512"):
        get(write(asks(3), max_length=1024), tokenizer, max_length=512)


def test_all_labels_masked_is_an_error(write, tokenizer):
    empty = [{"prompt": "a", "completion": ""}] * 3
    with pytest.raises(DataError, match="no row has a token to learn"):
        get(write(empty), tokenizer)
    rows = [{"prompt": "why " * 100 + "\n", "completion": "So."}]
    with pytest.raises(DataError, match="truncating cut the answers off"):
        get(write(rows, overlong="truncate"), tokenizer, max_length=20)
    with pytest.raises(DataError, match="all 1 rows are longer than 20 tokens"):
        get(write(rows, overlong="drop"), tokenizer, max_length=20)


def test_empty_answers_are_dropped_and_counted(write, tokenizer):
    rows = [*asks(3), {"prompt": "a", "completion": ""}]
    data = get(write(rows, validation=0), tokenizer)
    assert len(data.train) == 3 and "1 rows have nothing to learn" in data.notices[0]


def prompts(examples):
    return {e.source.prompt for e in examples}


def test_the_split_is_a_function_of_seed_and_content(write, tokenizer):
    rows = asks(100)
    data = get(write(rows, validation=0.2), tokenizer)
    assert (len(data.train), len(data.validation)) == (80, 20)
    again = get(write(rows, validation=0.2), tokenizer)
    assert (again.train, again.validation) == (data.train, data.validation)
    random.Random(0).shuffle(rows)
    shuffled = get(write(rows, validation=0.2), tokenizer)
    assert prompts(shuffled.validation) == prompts(data.validation)
    other = get(write(rows, validation=0.2), tokenizer, seed=1)
    assert prompts(other.validation) != prompts(data.validation)
    assert prompts(data.train).isdisjoint(prompts(data.validation))


@pytest.mark.parametrize("rows, share, held", [(2, 0.01, 1), (1, 0.5, 0), (5, 0, 0), (3, 0.99, 2)])
def test_each_side_gets_a_row(write, tokenizer, rows, share, held):
    data = get(write(asks(rows), validation=share), tokenizer)
    assert (len(data.train), len(data.validation)) == (rows - held, held)


def test_blocks_of_one_text_are_split(write, tokenizer):
    config = write("Once upon a time. " * 200, name="a.txt", validation=0.1)
    data = get(config, tokenizer, max_length=64)
    total = len(data.train) + len(data.validation)
    assert len(data.validation) == round(0.1 * total)
    assert not any("stand in the training rows" in line for line in data.notices)


def test_repeated_rows_are_counted_and_stay_on_one_side(write, tokenizer):
    rows = [row for row in asks(20) for _ in range(2)]
    data = get(write(rows, validation=0.2), tokenizer)
    assert data.notices == ["a.jsonl: 20 rows repeat an earlier row; a.jsonl:1 occurs 2 times"]
    assert prompts(data.train).isdisjoint(prompts(data.validation))


def test_rows_on_both_sides_are_named(write, tokenizer):
    data = get(write(asks(1) * 4, validation=0.25), tokenizer)
    assert (len(data.train), len(data.validation)) == (3, 1)
    assert "1 validation rows are training rows too" in data.notices[-1]


def test_a_validation_file(write, tokenizer):
    held = write(asks(12)[8:], name="held.jsonl")
    data = get(write(asks(10), validation=held.path, limit=9), tokenizer)
    assert (len(data.train), len(data.validation)) == (9, 4)
    assert "1 validation rows are training rows too" in data.notices[-1]
    alone = get(write(asks(10), validation=0), tokenizer)
    assert data.digest != alone.digest and len(data.digest) == 64


def test_classes_are_numbered_in_order(write, tokenizer):
    rows = [{"text": "a", "label": 10}, {"text": "b", "label": 2}, {"text": "c", "label": 10}]
    data = get(write(rows, validation=0), tokenizer)
    assert data.labels == ["2", "10"]
    assert [e.label for e in data.train] == [1, 0, 1]
    with pytest.raises(DataError, match="there is nothing to tell apart"):
        get(write(rows[:1]), tokenizer)
    known = get(write(rows, validation=0), tokenizer, labels=["10", "2"])
    assert [e.label for e in known.train] == [0, 1, 0]
    with pytest.raises(DataError, match="not those that the model knows"):
        get(write(rows), tokenizer, labels=["2", "3"])


def test_classes_that_look_alike_are_noticed_once(write, tokenizer):
    rows = [{"text": t, "label": n} for t, n in zip("abcd", ["Dog", "dog", "x", "X"], strict=True)]
    held = write([{"text": "e", "label": "dog"}], name="held.jsonl")
    data = get(write(rows, validation=held.path), tokenizer)
    assert data.labels == ["Dog", "X", "dog", "x"]
    (line,) = data.notices
    assert "'Dog' and 'dog' look alike" in line


def test_a_class_without_training_rows_is_named(write, tokenizer):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    held = write([{"text": "c", "label": "z"}], name="held.jsonl")
    data = get(write(rows, validation=held.path), tokenizer)
    assert data.labels == ["x", "y", "z"]
    assert data.notices == ["no training row has the class z"]


def test_long_texts_of_a_classifier(write):
    bert = wordpiece()
    rows = [{"text": "good " * 50, "label": "x"}, {"text": "bad", "label": "y"}]
    data = get(write(rows, overlong="truncate", validation=0), bert, max_length=16)
    assert len(data.train[0].ids) == 16 and data.train[0].ids[-1] == bert.sep_token_id
    assert "lose their ends" in data.notices[0]
    with pytest.raises(DataError, match="longer than 16"):
        get(write(rows), bert, max_length=16)


def test_validation_rows_of_another_format_are_refused(write, tokenizer):
    held = write([{"text": "c", "label": "z"}], name="held.jsonl")
    with pytest.raises(DataError, match="holds label rows, but the training rows are prompt"):
        get(write(asks(3), validation=held.path), tokenizer)
