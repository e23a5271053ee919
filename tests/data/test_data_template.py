"""Rows to text: the shapes are found, and every bad row is named."""

import pytest

from lorica.data.config import DataConfig
from lorica.data.source import Row
from lorica.data.template import render
from lorica.errors import DataError


def rendered(fields, tokenizer=None, **settings):
    fields = fields if isinstance(fields, list) else [fields]
    rows = [Row(row, f"a.jsonl:{i}") for i, row in enumerate(fields, 1)]
    return render(rows, DataConfig(path="a.jsonl", **settings), tokenizer)


def pieces(rendering):
    return [(s.text, s.learned) for s in rendering.rows[0].segments]


@pytest.mark.parametrize(
    "kind, fields, want",
    [
        ("prompt", {"prompt": "a ", "completion": "b"}, [("a ", False), ("b", True)]),
        ("text", {"text": "a b"}, [("a b", True)]),
        ("label", {"text": "a b", "label": 3}, [("a b", False)]),
    ],
)
def test_shapes_are_found_from_the_columns(kind, fields, want):
    rendering = rendered(fields)
    assert rendering.kind == kind
    assert pieces(rendering) == want
    assert rendering.lines == []


def test_alpaca_has_the_layout_of_the_field():
    with_input, plain = rendered(
        [
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Say hi.", "input": None, "output": "hi"},
        ]
    ).rows
    assert with_input.prompt.endswith(
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert plain.prompt.endswith("### Instruction:\nSay hi.\n\n### Response:\n")
    assert "Input" not in plain.prompt and plain.reference == "hi"


def test_learning_everything_keeps_prompt_and_reference():
    (row,) = rendered({"prompt": "a ", "completion": "b"}, completion_only=False).rows
    assert [s.learned for s in row.segments] == [True, True]
    assert (row.prompt, row.reference) == ("a ", "b")


def test_columns_are_mapped_and_the_rest_is_named():
    columns = {"prompt": "q", "completion": "a"}
    rendering = rendered({"q": "1", "a": "2", "prompt": "no", "id": 7}, columns=columns)
    assert pieces(rendering) == [("1", False), ("2", True)]
    assert rendering.lines == ["read as prompt rows; columns not used: prompt, id"]


def test_a_mapping_to_no_column_is_an_error():
    with pytest.raises(DataError, match="qestion") as error:
        rendered({"question": "1", "answer": "2"}, columns={"prompt": "qestion"})
    assert "closest  question" in str(error.value)


@pytest.mark.parametrize(
    "fields, fix",
    [
        ({"question": "1", "answer": "2"}, "data.columns: {prompt: question, completion: answer}"),
        ({"Sentence": "1", "label": "2"}, "data.columns: {text: Sentence}"),
        ({"x": "1"}, "data.columns"),
    ],
)
def test_unknown_columns_name_the_found_and_the_known(fields, fix):
    with pytest.raises(DataError, match="alpaca: instruction output") as error:
        rendered(fields)
    assert ", ".join(fields) in str(error.value)
    assert fix in str(error.value)


def test_a_told_shape_needs_its_columns():
    with pytest.raises(DataError, match="prompt rows need completion"):
        rendered({"prompt": "a"}, format="prompt")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [], "label": True},
        {"conversations": [], "chosen": {}, "rejected": {}},
        {"prompt": "a", "completion": "b", "label": False},
        {"messages": [], "kto_tag": True},
    ],
)
def test_preferences_are_refused(fields):
    with pytest.raises(DataError, match="preferences"):
        rendered(fields)


def test_all_bad_rows_are_collected():
    good = {"prompt": "a", "completion": "b"}
    bad = [{"prompt": "a", "completion": None}, {"prompt": 3, "completion": "b"}, {"prompt": "a"}]
    bad += [{"prompt": "\ud800", "completion": "b"}, {"prompt": [], "completion": "b"}]
    with pytest.raises(DataError) as error:
        rendered([good, *bad])
    text = str(error.value)
    assert "5 of 6 rows cannot be used" in text
    assert "a.jsonl:2 completion is NoneType, not text" in text
    assert "a.jsonl:3 prompt is int" in text
    assert "a.jsonl:4 has no completion" in text
    assert "and 2 more" in text


def test_labels_must_name_a_class():
    with pytest.raises(DataError, match=r"label is 0\.5"):
        rendered([{"text": "a", "label": 0.5}, {"text": "a", "label": ""}])


def test_an_empty_answer_is_not_learned():
    (row,) = rendered({"prompt": "a", "completion": " "}).rows
    assert not any(s.learned for s in row.segments)
