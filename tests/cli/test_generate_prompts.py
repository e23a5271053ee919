"""lorica generate --prompts: prompts from a file, texts to a file."""

import json

import pytest

from lorica import cli
from lorica.data.prompt_file import PromptFile, read_prompts
from lorica.errors import DataError


def run_json(capsys, *words):
    assert cli.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("p.txt", "Tom \r\n\n  The dog\nLily", PromptFile(["Tom ", "  The dog", "Lily"], None)),
        ("p.jsonl", '{"prompt": "Tom"}\n{"prompt": "a", "x": 1}\n', PromptFile(["Tom", "a"], None)),
        (
            "p.jsonl",
            '{"prompt": "Tom", "condition": "en-fr"}\n{"prompt": "a", "condition": [1, 2]}\n',
            PromptFile(["Tom", "a"], ["en-fr", "[1.0, 2.0]"]),
        ),
        ("p.csv", "prompt\nTom\n", PromptFile(["Tom"], None)),
    ],
)
def test_prompts_of_a_file(tmp_path, name, text, want):
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == want


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", " \n\n", "is empty"),
        ("p.txt", b"\xff\xfe1", "not UTF-8"),
        ("p.jsonl", '{"promt": "x"}', "1 of 1 rows cannot be used"),
        ("p.jsonl", '{"prompt": ""}', "1 of 1 rows cannot be used"),
        ("p.jsonl", '{"prompt": "x", "condition": "a"}\n{"prompt": "y"}', "1 of 2 rows have no"),
        ("p.doc", "x", "doc"),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path, name, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_generate_reads_prompts_and_writes_texts(capsys, tmp_path, small_base):
    file, output = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text("Tom\nOnce upon a time\nThe dog\n", encoding="utf-8")
    words = ["generate", "--base", str(small_base), "--max-new-tokens", "9"]
    given = [f"--prompt={text}" for text in file.read_text(encoding="utf-8").splitlines()]
    want = run_json(capsys, *words, *given)
    assert run_json(capsys, *words, "--prompts", file)["texts"] == want["texts"]
    assert cli.run([*words, "--prompts", str(file), "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "tokens/s" in printed.err
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == want["texts"]
    for extra, message in (
        (["--output", str(output)], "exists and is not overwritten"),
        (["--prompt", "x"], "not from both"),
        (["--top_k", "-1"], "top_k is -1"),
        (["--batch_size", "0"], "batch_size is 0"),
    ):
        assert cli.run([*words, "--prompts", str(file), *extra]) == 2
        assert message in capsys.readouterr().err
