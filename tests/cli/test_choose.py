"""lorica choose: from rows in a file to a recipe that lorica train reads."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from lorica import cli
from lorica.training.config import read
from tests.marks import slow_but
from world.reviews import reviews
from world.tickets import tickets
from world.translation import translation


@pytest.fixture
def write(tmp_path):
    def rows_file(rows: Iterator, count: int = 60, name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in islice(rows, count)))
        return str(path)

    return rows_file


@pytest.fixture
def choose(capsys):
    def chosen(*words: str, status: int = 0) -> dict:
        assert cli.run(["choose", "--base", "bundled", *words, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return chosen


def test_the_recipe_is_one_that_train_reads(write, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    words = ["--base", "bundled", "--data", write(tickets(60, 0)), "--output", str(path)]
    assert cli.run(["choose", *words]) == 0
    text = capsys.readouterr().out
    assert "Data first" in text and "Choice: lora r=4" in text and f"lorica train {path}" in text
    config = read(path)
    assert (config.base, config.method["name"], config.method["r"]) == ("bundled", "lora", 4)
    assert config.method["alpha"] == 8 and config.target_modules == "all-linear"
    assert config.learning_rate == 0.0021 and config.dtype == "float32"


def test_a_recipe_is_not_overwritten(write, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("base: bundled\n")
    assert (
        cli.run(
            ["choose", "--base", "bundled", "--data", write(tickets(60, 0)), "--output", str(path)]
        )
        == 2
    )
    assert "is not overwritten" in capsys.readouterr().err


def test_every_setting_has_its_reason_and_every_reason_its_evidence(write, choose):
    result = choose("--data", write(tickets(60, 0)), "--memory", "24GiB")
    reasons = {reason["what"] for reason in result["reasons"]}
    settings = set(result["settings"]) - {"gradient_accumulation_steps"}
    assert settings <= reasons
    for name in ("path", "reasons", "ruled_out", "doubts", "serving"):
        for reason in result[name]:
            assert reason["why"] and set(reason["evidence"]) <= set(result["evidence"])
    assert all(reason["evidence"] for reason in result["reasons"])
    assert result["peak_memory_bytes"] < 24 * 2**30


def test_conditions_lead_to_hyperlora(write, choose):
    result = choose("--data", write(translation(60, 1)))
    assert (result["edge"], result["method"]) == ("conditions", "hyperlora")
    assert result["settings"]["method"]["condition"] == "pair"


def test_classes_are_counted(write, choose):
    result = choose("--data", write(reviews(60, 0)))
    assert result["method"] == "lora" and result["settings"]["method"]["r"] == 8
    assert result["rows"]["kind"] == "label"


def test_plain_text(tmp_path, choose):
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time a red ball rolled away. " * 400)
    result = choose("--data", str(path))
    assert result["rows"]["kind"] == "text" and result["rows"]["label_tokens"] > 1000


def test_conflicting_and_empty_answers_stand_on_top(write, capsys):
    rows = [{"prompt": "red?", "completion": answer} for answer in ("yes", "no", "")]
    more = [{"prompt": f"what is {i}?", "completion": "a box"} for i in range(40)]
    assert cli.run(["choose", "--base", "bundled", "--data", write(iter(rows + more))]) == 0
    first = capsys.readouterr().out.partition("Why lora")[0]
    assert "1 of 43 rows (2.3 %) have an empty answer" in first
    assert "1 prompts have several different answers (2 of 43 rows (4.7 %))" in first
    assert "too few" in first


def test_a_few_long_rows_are_left_out_with_the_reason(write, choose):
    rows = [{"prompt": f"what is {i}?", "completion": " a box"} for i in range(40)]
    rows += [{"prompt": "tell me", "completion": " box" * 2000}]
    result = choose("--data", write(iter(rows)))
    assert "overlong: drop" in result["recipe"] and "would lose their answers" in result["recipe"]


def test_many_long_rows_are_an_error(write, choose):
    rows = [{"prompt": f"tell me {i}", "completion": " box" * 2000} for i in range(10)]
    result = choose("--data", write(iter(rows)), status=3)
    assert result["findings"][0]["level"] == "error"


def test_a_device_that_is_too_small(write, capsys):
    assert (
        cli.run(
            ["choose", "--base", "bundled", "--data", write(tickets(60, 0)), "--memory", "500MiB"]
        )
        == 4
    )
    assert "no training of bundled fits: the device has 500 MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.yaml"], "choose writes a recipe, and reads none"),
        (["--data", "rows.jsonl", "--learning_rate", "1e-3"], "--learning_rate is not a setting"),
        (
            ["--memory", "big", "--base", "bundled", "--data", "rows.jsonl"],
            "there is no device 'big'",
        ),
        (["--data", "rows.jsonl"], "no base was named"),
        (["--base", "bundled"], "data"),
    ],
)
def test_mistakes(words, message, capsys):
    assert cli.run(["choose", *words]) == 2
    assert message in capsys.readouterr().err


def test_torch_is_not_imported(write):
    words = ["choose", "--base", "bundled", "--data", write(tickets(60, 0)), "--json"]
    code = (
        f"import sys; from lorica import cli; assert cli.run({words}) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_try_trains_and_writes_what_it_showed(write, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    words = ["--base", "bundled", "--data", write(tickets(400, 0), 400), "--goal", "small"]
    assert cli.run(["choose", *words, "--try", "40s", "--output", str(path)]) == 0
    assert "[rule-try]" in capsys.readouterr().out
    assert read(path).method["name"] in ("lora", "dora")


@pytest.mark.parametrize("writable", [True, False])
def test_where_the_recipe_goes_is_checked_before_anything_is_computed(
    write, tmp_path, capsys, monkeypatch, writable
):
    """And the answer is one JSON document, whether the folder is missing or read-only."""
    from lorica.plan.choose import gather

    monkeypatch.setattr(gather, "gather", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr("lorica.cli.options.os.access", lambda *_: writable)
    folder = tmp_path / "none" if writable else tmp_path
    words = ["--base", "bundled", "--data", write(tickets(60, 0)), "--try", "10min", "--json"]
    assert cli.run(["choose", *words, "--output", str(folder / "recipe.yaml")]) == 2
    assert str(folder) in json.loads(capsys.readouterr().out)["error"]["what"]


def test_a_recipe_that_cannot_be_written_at_the_end_is_one_json_document(
    write, tmp_path, capsys, monkeypatch
):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    words = ["--base", "bundled", "--data", write(tickets(60, 0)), "--json"]
    monkeypatch.setattr(Path, "write_text", full)
    assert cli.run(["choose", *words, "--output", str(tmp_path / "recipe.yaml")]) == 4
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("count", slow_but([61], [61, 200, 733]))
@pytest.mark.parametrize("memory", ["24GiB", "660MiB"])
def test_the_choice_and_the_plan_of_its_recipe_have_the_same_numbers(
    write, tmp_path, choose, capsys, count, memory
):
    path = tmp_path / "recipe.yaml"
    words = ["--data", write(tickets(count, 0), count), "--memory", memory]
    chosen = choose(*words, "--output", str(path))
    assert cli.run(["plan", str(path), "--device", memory, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert chosen["peak_memory_bytes"] == planned["memory"]["total"]
    assert chosen["planned"] == planned
    assert chosen["rows"]["train"] == planned["rows"]
    assert chosen["rows"]["label_tokens"] == planned["label_tokens"]
    warmup = next(r["why"] for r in chosen["reasons"] if r["what"] == "warmup_ratio")
    assert warmup.startswith(f"{planned['steps']:,} steps")


def test_the_time_of_the_training_is_in_the_choice(write, capsys):
    words = ["choose", "--base", "bundled", "--data", write(tickets(60, 0)), "--memory"]
    assert cli.run([*words, "h100"]) == 0
    head = " ".join(capsys.readouterr().out.partition("Data first")[0].split())
    assert re.search(
        r"Planned: .* MiB of memory .*, \d+ steps, [\d.]+ s \(.* to .*\), an adapter", head
    )
    assert cli.run([*words, "24GiB"]) == 0
    head = " ".join(capsys.readouterr().out.partition("Data first")[0].split())
    assert "the time is not known, as the speed of the card is not" in head
