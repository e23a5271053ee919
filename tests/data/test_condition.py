"""The column `condition`: in every row format, up to the batch; in all rows or in none."""

import json
from hashlib import sha256

import pytest

from lorica.data.batch import pack, pad
from lorica.data.check import check
from lorica.data.config import DataConfig
from lorica.data.example import Example
from lorica.data.load import distinct_conditions, load_data
from lorica.errors import DataError
from tests.data.tokenizers import sentencepiece

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FORMATS = {
    "prompt": {"prompt": "Ask", "completion": " answer"},
    "alpaca": {"instruction": "Do", "output": "done"},
    "text": {"text": "Once upon a time"},
    "label": {"text": "good", "label": "yes"},
    "messages": {"messages": MESSAGES},
}


@pytest.fixture(scope="module")
def tokenizer():
    own = sentencepiece()
    own.chat_template = TEMPLATE
    return own


@pytest.fixture
def write(tmp_path):
    def write(rows, name="a.jsonl", **settings):
        path = tmp_path / name
        text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        path.write_text(text)
        return DataConfig(path=str(path), **{"validation": 0, **settings})

    return write


def get(config, tokenizer):
    return load_data(config, tokenizer, seed=0, max_length=None)


def asks(*conditions):
    return [
        {"prompt": f"What is {i}?\n", "completion": f"It is {i}.", "condition": c}
        for i, c in enumerate(conditions)
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_row_format_may_have_a_condition(kind, write, tokenizer):
    rows = [{**FORMATS[kind], "condition": c} for c in ("b", "a")]
    if kind == "label":
        rows[1]["label"] = "no"
    data = get(write(rows), tokenizer)
    assert [e.condition for e in data.train] == ["b", "a"]
    assert distinct_conditions(data.train) == ["a", "b"]
    assert not any("columns not used" in line for line in data.notices)
    assert pad(data.train, 0).conditions == pack(data.train).conditions == ("b", "a")
    without = get(write([FORMATS["prompt"], FORMATS["alpaca"]][:1]), tokenizer)
    assert [e.condition for e in without.train] == [None]
    assert distinct_conditions(without.train) is None
    assert pad(without.train, 0).conditions is None


def test_the_column_may_have_another_name(write, tokenizer):
    rows = [{**row, "direction": "en-fr"} for row in asks("used", "new")]
    data = get(write(rows, columns={"condition": "direction"}), tokenizer)
    assert [e.condition for e in data.train] == ["en-fr", "en-fr"]
    with pytest.raises(DataError, match="has no column 'langs'"):
        get(write(rows, columns={"condition": "langs"}), tokenizer)


@pytest.mark.parametrize(
    "value, text",
    [
        (3, "3"),
        ("x", "x"),
        ([1, 2.5], "[1.0, 2.5]"),
        (" spaced ", " spaced "),
        (None, None),
    ],
    ids=str,
)
def test_conditions_become_text(value, text, write, tokenizer):
    assert get(write(asks(value)), tokenizer).train[0].condition == text


@pytest.mark.parametrize(
    "value, why",
    [
        ("", "empty"),
        ("  ", "empty"),
        (True, "bool"),
        (1.5, "float"),
        ({}, "dict"),
        ([], "not of finite numbers"),
        (["a"], "not of finite numbers"),
        ([True], "not of finite"),
        ([float("nan")], "not of finite numbers"),
    ],
    ids=str,
)
def test_other_conditions_are_refused(value, why, write, tokenizer):
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used") as error:
        get(write(asks("good", value)), tokenizer)
    assert "a.jsonl:2 condition" in error.value.facts["rows"]
    assert why in error.value.facts["rows"]


def test_rows_with_and_without_conditions_are_not_mixed(write, tokenizer):
    with pytest.raises(DataError, match="2 of 4 rows have no condition") as error:
        get(write([*asks("a"), *asks(None, None), *asks("b")]), tokenizer)
    assert "a.jsonl:2" in error.value.facts["rows"]
    rows = [Example([1, 2], [False, True], "x", condition=c) for c in ("a", None)]
    for make in (pack, lambda rows: pad(rows, 0)):
        with pytest.raises(DataError, match="1 of 2 rows have a condition"):
            make(rows)


@pytest.mark.parametrize("first, second", [("a", None), (None, "a")])
def test_both_files_have_conditions_or_neither(first, second, write, tokenizer):
    other = write(asks(second, second), "held.jsonl").path
    with pytest.raises(DataError, match="have no condition"):
        get(write(asks(first, first), validation=other), tokenizer)


def test_rows_with_different_conditions_are_different_rows(write, tokenizer):
    same = [{"prompt": "Say it:\n", "completion": "yes", "condition": c} for c in "abab"]
    data = get(write(same), tokenizer)
    assert any("2 rows repeat an earlier row" in line for line in data.notices)
    assert not any("repeat" in line for line in get(write(same[:2]), tokenizer).notices)


def test_the_split_of_rows_without_conditions_is_unchanged(write, tokenizer):
    rows = [{k: v for k, v in row.items() if k != "condition"} for row in asks(*range(40))]
    held = get(write(rows, validation=0.2), tokenizer).validation
    keys = [f"0\0{row['prompt']}\x1f{row['completion']}\x1f" for row in rows]
    order = sorted(range(40), key=lambda i: sha256(keys[i].encode()).hexdigest())
    assert [e.row for e in held] == sorted(order[:8])


def test_every_block_of_a_split_text_has_its_condition(write, tokenizer):
    config = write([{"text": "word " * 60, "condition": "a"}], max_length=20, overlong="split")
    blocks = get(config, tokenizer).train
    assert len(blocks) > 2
    assert {e.condition for e in blocks} == {"a"}


def test_check_counts_conditions(write, tokenizer):
    report = check(write(asks("b", "a", "b")), tokenizer, seed=0, max_length=None)
    assert report.conditions == {"b": 2, "a": 1}
    plain = [{k: v for k, v in row.items() if k != "condition"} for row in asks("a")]
    assert check(write(plain), tokenizer, seed=0, max_length=None).conditions == {}
