"""Rows to text: the format is detected, and every unusable row is named."""

import pytest

from lorica.data import template_worker
from lorica.data.classes import match_labels, similar_name_notices
from lorica.data.config import DataConfig
from lorica.data.render import render
from lorica.data.render_prompt import ALPACA_TEMPLATE
from lorica.data.source import Row
from lorica.errors import DataError


def rendered(fields, tokenizer=None, **settings):
    fields = fields if isinstance(fields, list) else [fields]
    rows = [Row(row, f"a.jsonl:{i}") for i, row in enumerate(fields, 1)]
    return render(rows, DataConfig(path="a.jsonl", **settings), tokenizer)


def pieces(rendering):
    return [(s.text, s.learned) for s in rendering.rows[0].spans]


@pytest.mark.parametrize(
    "kind, fields, want",
    [
        ("prompt", {"prompt": "a ", "completion": "b"}, [("a ", False), ("b", True)]),
        ("text", {"text": "a b"}, [("a b", True)]),
        ("label", {"text": "a b", "label": 3}, [("a b", False)]),
    ],
)
def test_the_format_is_detected_from_the_columns(kind, fields, want):
    rendering = rendered(fields)
    assert rendering.kind == kind
    assert pieces(rendering) == want
    assert rendering.notices == []


PUBLISHED = {  # tatsu-lab/stanford_alpaca, train.py
    True: "Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:",
    False: "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:",
}


def test_alpaca_has_the_published_text():
    with_input, plain = rendered(
        [
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Say hi.", "input": None, "output": "hi"},
        ]
    ).rows
    assert (with_input.prompt, with_input.reference) == (PUBLISHED[True], "3")
    assert (plain.prompt, plain.reference) == (PUBLISHED[False], "hi")


ALPACA_ROWS = [
    {"instruction": "a", "input": given, "system": system, "history": history}
    for given in ("", "b")
    for system in ("", "c")
    for history in ([], [["d", "e"], ["f", "g"]])
]


@pytest.mark.parametrize("row", ALPACA_ROWS, ids=str)
def test_the_recorded_template_writes_the_default_text(row):
    rows = [row | {"output": "x"}]
    default = rendered(rows)
    assert rendered(rows, prompt_template=ALPACA_TEMPLATE).rows == default.rows
    text = default.rows[0].prompt
    assert all(word in text for word in (row["input"], row["system"]))
    assert [text.count(f"### Response:{a}\n") for _, a in row["history"]] == [1, 1][
        : len(row["history"])
    ]


def test_history_is_context_with_a_notice():
    row = {"instruction": "And June?", "output": "Warm.", "history": [["May?", "Mild."]]}
    rendering = rendered(row)
    assert "### Instruction:\nMay?\n\n### Response:Mild.\n\n" in rendering.rows[0].prompt
    (line,) = rendering.notices
    assert line == "the answers in the history of 1 rows are context, not learned: a.jsonl:1"
    with pytest.raises(DataError, match="history is not a list"):
        rendered(row | {"history": [["May?"]]})


def test_a_prompt_template_writes_the_prompt():
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3"}
    (row,) = rendered(alpaca, prompt_template="Q: {{ instruction }} {{ input }}\nA: ").rows
    assert pieces(rendered(alpaca, prompt_template="{{ instruction }}{{ input }}"))[1] == (
        "3",
        True,
    )
    assert (row.prompt, row.reference) == ("Q: Add. 1 2\nA: ", "3")
    (row,) = rendered({"prompt": "a", "completion": "b"}, prompt_template="<{{ prompt }}>").rows
    assert (row.prompt, row.reference) == ("<a>", "b")


@pytest.mark.parametrize(
    "template, match",
    [
        ("{{ instruction }}", "does not write its input"),
        ("{{ instruction + 3 }}", "refuses it"),
        ("{% for %}", "cannot be read"),
        ("{% for a in range(90000) %}{% for a in range(90000) %}{% endfor %}{% endfor %}", None),
    ],
)
def test_a_prompt_template_that_drops_or_fails_is_refused(template, match, monkeypatch):
    if match is None:
        monkeypatch.setattr(template_worker, "_worker", template_worker.Worker(seconds=0))
        match = "does not come to an end"
    with pytest.raises(DataError, match=match):
        rendered({"instruction": "Add.", "input": "1", "output": "3"}, prompt_template=template)


def test_a_template_of_text_rows_is_refused():
    with pytest.raises(DataError, match="alpaca and prompt rows"):
        rendered({"text": "a"}, prompt_template="{{ prompt }}")


def test_templates_are_read_from_files(tmp_path):
    file = tmp_path / "alpaca.jinja"
    file.write_text("{{ instruction }}")
    config = DataConfig(path="a.jsonl", prompt_template=str(file), chat_template=str(file))
    assert config.prompt_template == config.chat_template == "{{ instruction }}"
    for value in (str(tmp_path / "missing.jinja"), "no field"):
        with pytest.raises(ValueError, match=r"no file|neither a file"):
            DataConfig(path="a.jsonl", prompt_template=value)


def test_learned_prompts_keep_prompt_and_reference():
    (row,) = rendered({"prompt": "a ", "completion": "b"}, completion_only=False).rows
    assert [s.learned for s in row.spans] == [True, True]
    assert (row.prompt, row.reference) == ("a ", "b")


def test_columns_are_mapped_and_unused_ones_are_named():
    columns = {"prompt": "q", "completion": "a"}
    rendering = rendered({"q": "1", "a": "2", "prompt": "no", "id": 7}, columns=columns)
    assert pieces(rendering) == [("1", False), ("2", True)]
    assert rendering.notices == ["read as prompt rows; columns not used: prompt, id"]


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
def test_unknown_columns_are_an_error_with_a_suggestion(fields, fix):
    with pytest.raises(DataError, match="alpaca: instruction output") as error:
        rendered(fields)
    assert ", ".join(fields) in str(error.value)
    assert fix in str(error.value)


def test_a_format_that_is_set_needs_its_columns():
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
    assert not any(s.learned for s in row.spans)


BLANKS = [" ", "  ", "\t", "\n", "\u00a0", "\u2003", " \u3000 ", "\r\n"]


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_labels_that_differ_only_in_white_space_are_one_class(blank):
    label = f"{blank}a{blank}b{blank}"
    rows = [Row({"text": "x", "label": label}, "f:1"), Row({"text": "x", "label": "a b"}, "f:2")]
    done = render(rows, DataConfig(path="f"), None)
    assert [row.label for row in done.rows] == ["a b", "a b"]
    assert match_labels({"a b", "c"}, [f"a{blank}b", "c"], all_numbers=True) == {
        "a b": f"a{blank}b",
        "c": "c",
    }


SIMILAR = {
    "case": ("Dog", "dog"),
    "composed": ("caf\u00e9", "cafe\u0301"),
    "zero width": ("dog", "do\u200bg"),
    "byte order mark": ("dog", "\ufeffdog"),
    "soft hyphen": ("dog", "do\u00adg"),
    "full-width digits": ("12", "\uff11\uff12"),
    "ligature": ("fish", "\ufb01sh"),
    "two at once": ("CAF\u00c9", "cafe\u200b\u0301"),
}


@pytest.mark.parametrize("case", SIMILAR)
def test_classes_that_look_alike_stay_two_with_one_notice(case):
    first, second = SIMILAR[case]
    rows = [Row({"text": "x", "label": label}, "f:1") for label in (first, second)]
    assert len({row.label for row in render(rows, DataConfig(path="f"), None).rows}) == 2
    (notice,) = similar_name_notices([first, "cat", second, "CAT"])
    assert ascii(first) in notice
    assert ascii(second) in notice


@pytest.mark.parametrize("names", [["dog", "dogs"], ["1", "01"], ["a b", "ab"], ["o", "0"]])
def test_other_classes_do_not_look_alike(names):
    assert similar_name_notices(names) == []
