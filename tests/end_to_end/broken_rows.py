"""Broken rows; see tests/end_to_end/case.py."""

import tests.end_to_end.broken as do
from tests.end_to_end.case import TRAIN, Case, train

ANSWERLESS = [{"prompt": "Tom has", "completion": ""}] * 3
PLAIN = {"prompt": "Tom has a", "completion": " red ball."}

DATA = [
    Case(
        "no answers",
        do.write("rows.jsonl", ANSWERLESS),
        TRAIN,
        3,
        ("rows.jsonl", "no row has an answer", "rows.jsonl:1", "fix"),
    ),
    Case(
        "all answers cut off",
        do.nothing,
        f"{TRAIN} --data.max_length 4 --data.overlong truncate",
        3,
        ("truncating cut the answers off", "raise data.max_length"),
    ),
    Case(
        "no end of sequence", do.no_end, TRAIN, 3, ("no end-of-sequence token", "eos_token", "fix")
    ),
    Case("an empty file", do.write("rows.jsonl", ""), TRAIN, 3, ("rows.jsonl is empty", "fix")),
    Case(
        "no rows",
        do.write("rows.json", "[]"),
        train(data="rows.json"),
        3,
        ("rows.json", "no rows", "fix"),
    ),
    Case(
        "no file",
        do.nothing,
        train(data="row.jsonl"),
        3,
        ("no file row.jsonl", "closest", "rows.jsonl"),
    ),
    Case(
        "other columns",
        do.write("rows.jsonl", [{"question": "a", "answer": "b"}]),
        TRAIN,
        3,
        ("question, answer", "data.columns: {prompt: question, completion: answer}"),
    ),
    Case(
        "a mapped column that is not there",
        do.nothing,
        f"{TRAIN} --data.columns.prompt promt",
        3,
        ("'promt'", "closest", "prompt"),
    ),
    Case(
        "broken UTF-8",
        do.write("rows.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n'),
        TRAIN,
        3,
        ("rows.jsonl is not UTF-8", "line", "0xe4", "iconv"),
    ),
    Case(
        "a broken JSON line",
        do.write("rows.jsonl", b'{"text": "a"}\n{"text": \n'),
        TRAIN,
        3,
        ("rows.jsonl", "line 2", "fix"),
    ),
    Case(
        "a ragged CSV",
        do.write("rows.csv", "prompt,completion\na,b\na,b,c\n"),
        train(data="rows.csv"),
        3,
        ("rows.csv", "line 3", "fix"),
    ),
    Case(
        "a broken Parquet file",
        do.write("rows.parquet", b"PAR1nothingPAR1"),
        train(data="rows.parquet"),
        3,
        ("rows.parquet", "Parquet", "fix"),
    ),
    Case(
        "a chat template that loops",
        do.both(
            do.template(
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
            ),
            do.impatient,
        ),
        TRAIN,
        3,
        ("chat template", "does not come to an end", "chat_template.jinja"),
    ),
    Case(
        "a chat template that is broken",
        do.template("{% for m in messages %}"),
        TRAIN,
        3,
        ("chat template", "line", "chat_template.jinja"),
    ),
    Case("no chat template", do.template(None), TRAIN, 3, ("no chat template", "fix")),
    Case(
        "overlong rows",
        do.nothing,
        f"{TRAIN} --data.max_length 12",
        3,
        ("rows.jsonl", "longer than 12 tokens", "rows.jsonl:", "truncate"),
    ),
    Case(
        "overlong rows, cut",
        do.nothing,
        f"{TRAIN} --data.max_length 20 --data.overlong truncate",
        0,
        (
            "rows.jsonl",
            "longer than 20 tokens and lose their ends",
        ),
        ("out",),
    ),
    Case(
        "repeated rows",
        do.write("rows.jsonl", [PLAIN] * 5 + [{**PLAIN, "prompt": "Ben"}]),
        TRAIN,
        0,
        ("4 rows repeat an earlier row", "rows.jsonl:1 occurs 5 times"),
        ("out",),
    ),
    Case(
        "a single class",
        do.write("rows.jsonl", [{"text": "a b", "label": "good"}] * 4),
        TRAIN,
        3,
        ("class good", "nothing to tell apart", "fix"),
    ),
    Case(
        "preferences",
        do.write("rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        TRAIN,
        3,
        ("rows.jsonl", "preferences", "fix"),
    ),
    Case(
        "no validation file",
        do.nothing,
        f"{TRAIN} --data.validation val.jsonl",
        3,
        ("no file val.jsonl", "fix"),
    ),
    Case(
        "a validation file of the same rows",
        do.nothing,
        f"{TRAIN} --data.validation rows.jsonl",
        0,
        ("24 validation rows are training rows too",),
        ("out",),
    ),
    Case(
        "a text of another kind for a classifier",
        do.write("some.jsonl", [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}]),
        "eval run --base base --data some.jsonl",
        3,
        ("some.jsonl", "with classes", "fix"),
    ),
]
