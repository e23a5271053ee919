"""lorica plan, and the plan in lorica train: what they print, and their exit status."""

import json
import re
import shutil

import pytest

from lorica import cli
from lorica.cli.planned import compared
from tests.plan.planned import write_base, write_rows


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", 40)


@pytest.fixture
def llama(tmp_path):
    return write_base(tmp_path / "llama")


def test_a_plan_fits_80_columns_and_says_what_fits(capsys, rows):
    assert cli.run(["plan", "--base", "bundled", "--data", rows, "--device", "24GiB"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line) < 80 for line in lines[1:])  # the first has a path
    assert "it fits: " in printed and "of the 24.0 GiB of the card" in printed
    for part in ("weights", "adapter", "optimizer", "activations", "logits", "runtime"):
        assert any(line.strip().startswith(part) for line in lines)
    assert "224,256  parameters, 4.53% of the base" in printed


def test_a_run_that_does_not_fit_ends_with_status_4_and_the_recipe(capsys, rows, llama, tmp_path):
    words = ["plan", "--base", llama, "--data", rows, "--device", "14GiB", "--dtype", "bfloat16"]
    assert cli.run([*words, "--micro_batch_size", "64"]) == 4
    printed = capsys.readouterr().out
    assert "IT DOES NOT FIT" in printed
    flags, recipe = printed.split("the recipe with it:\n\n")
    assert re.search(r"--micro_batch_size \d+ --gradient_accumulation_steps \d+", flags)
    (tmp_path / "fits.yaml").write_text(recipe)
    assert cli.run(["plan", str(tmp_path / "fits.yaml"), "--device", "14GiB"]) == 0


def test_a_run_that_no_change_makes_fit_says_by_how_much(capsys, rows, llama):
    words = ["plan", "--base", llama, "--data", rows, "--device", "2GiB"]
    assert cli.run(words) == 4
    printed = capsys.readouterr().out
    assert "no single change makes it fit" in printed
    assert "--quantisation nf4 --method.r 1" in printed
    assert "too much for the card" in printed


def test_a_run_that_hardly_fits_says_so(capsys, rows):
    words = ["plan", "--base", "bundled", "--data", rows, "--device"]
    assert cli.run([*words, "24GiB", "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["memory"]["total"]
    assert cli.run([*words, f"{needed / 2**20 * 1.01:.1f}MiB"]) == 0
    printed = capsys.readouterr().out
    assert "closely: the plan may be 5% too low" in " ".join(printed.split())
    assert all(len(line) < 80 for line in printed.splitlines()[1:])


def test_json(capsys, rows, llama):
    words = ["plan", "--base", llama, "--data", rows, "--device", "8GiB", "--dtype", "bfloat16"]
    assert cli.run([*words, "--json"]) == 4
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is False
    assert printed["memory"]["total"] == sum(
        size for part, size in printed["memory"].items() if part != "total"
    )
    assert printed["change"]["settings"] == {"quantisation": "nf4"}
    assert printed["change"]["memory_bytes"] < 8 * 2**30


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--device", "h1000"], 2, "there is no device 'h1000'"),
        (["--method.r", "0"], 2, "--method.r is 0; it must be a whole number (at least 1)"),
        (["--method", "lorra"], 2, "there is no method 'lorra'"),
        (["--method.q", "3"], 2, "--method.q is not a setting"),
        (["--target_modules", "q_prj"], 2, "'q_prj' selects none"),
        (["--data", "none.jsonl"], 3, "there is no file none.jsonl"),
        (["--base", "no/such/folder"], 2, "there is no folder no/such/folder"),
        (["--measure", "--device", "h100"], 2, "--measure times steps on "),
    ],
)
def test_broken_input(capsys, rows, words, status, message):
    given = ["--base", "bundled", "--data", rows, "--device", "24GiB"]
    for i in range(0, len(given), 2):
        if given[i] not in words:
            words = [*words, *given[i : i + 2]]
    assert cli.run(["plan", *words]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_study_is_no_recipe(capsys, tmp_path, rows, command):
    study = tmp_path / "study.yaml"
    study.write_text(f"base: bundled\ndata: {rows}\nsides:\n  lora: {{method: lora}}\n")
    assert cli.run([command, str(study)]) == 2
    printed = capsys.readouterr().err
    assert f"lorica compare {study}" in printed and "is a study" in printed


def test_a_card_without_a_name_says_how_the_time_is_known(capsys, rows):
    assert cli.run(["plan", "--base", "bundled", "--data", rows, "--device", "24GiB"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "see --measure" not in printed
    assert "name a card whose speed is known (--device h100" in printed
    assert "run lorica plan with --measure on the machine that has the card" in printed
    words = ["plan", "--base", "bundled", "--data", rows, "--device", "24GiB", "--measure"]
    assert cli.run(words) == 2
    assert "run this on the machine that has it" in capsys.readouterr().err


def test_a_base_must_be_named(capsys, rows):
    assert cli.run(["plan", "--data", rows]) == 2
    assert "no base was named" in capsys.readouterr().err


@pytest.mark.parametrize("files", [1, 2])
def test_training_keeps_what_was_planned(capsys, rows, small_base, tmp_path, files):
    words = ["train", "--base", str(small_base), "--max_steps", "1"]
    for number in range(files):
        file = tmp_path / f"rows{number}.jsonl"
        shutil.copy(rows, file)
        words += ["--data", str(file)]
    words += ["--output", str(tmp_path / "run")]
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "run/results.json").read_text())["predicted"]
    assert kept["device"] == "cpu" and kept["seconds"]["low"] < kept["seconds"]["high"]
    assert kept["memory_bytes"] == sum(kept["memory"].values())
    line = next(line for line in printed.splitlines() if line.startswith("it took "))
    assert "of memory (planned: " in line
    file = (tmp_path / "run/adapter/adapter_model.safetensors").stat().st_size
    assert kept["adapter_bytes"] == pytest.approx(file, rel=0.1)  # a header of small tensors


@pytest.mark.parametrize(
    ("took", "steps", "words"),
    [
        (5.0, 10, "5.0 s (planned: 4.0 s to 8.0 s)"),
        (14.0, 10, "the plan was too short"),
        (2.0, 10, "the plan was too long"),
        (2.0, 6, "(planned: 4.0 s to 8.0 s for all 10 steps)"),
    ],
)
def test_a_missed_range_is_named(took, steps, words):
    spans = {"low": 4.0, "expected": 5.0, "high": 8.0}
    predicted = {"memory_bytes": 1, "seconds": spans, "took_seconds": took, "steps": 10}
    line = compared(predicted, {"peak_memory_bytes": None, "steps": steps})
    assert words in line and ("the plan was" in line) == ("the plan was" in words)


@pytest.mark.slow
def test_a_resumed_run_is_planned_as_well(capsys, rows, small_base, tmp_path):
    words = ["train", "--base", str(small_base), "--data", rows, "--output", str(tmp_path / "run")]
    assert cli.run([*words, "--max_steps", "1"]) == 0
    assert cli.run(["train", "--resume", str(tmp_path / "run"), "--max_steps", "2"]) == 0
    assert "it took " in capsys.readouterr().out
    assert "predicted" in json.loads((tmp_path / "run/results.json").read_text())
