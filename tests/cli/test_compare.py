"""lorica compare: what it prints, its report, and its exit status."""

import json
import re
from pathlib import Path

import pytest

from lorica import cli
from lorica.cli.compare import parse_duration
from lorica.errors import ConfigError
from tests.compare.study_files import fix_costs, write_study


def test_a_dry_run_lists_the_units_and_writes_nothing(small_base: Path, tmp_path: Path, capsys):
    path = write_study(tmp_path, small_base)
    assert cli.run(["compare", str(path), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 sides, 2 seeds, 17 units; 48 training rows, 12 test rows; measured: loss" in printed
    assert re.search(r"the largest pass trains 6 runs at once, with [\d.]+ MiB of memory", printed)
    assert re.search(
        r"planned: .* of training, one run after another|the time is not known before", printed
    )
    assert "lora r=2  2 steps, learning rates 7e-05, 0.007, 0.7" in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_json(small_base: Path, tmp_path: Path, capsys):
    path = write_study(tmp_path, small_base)
    command = ["compare", str(path), "--output", str(tmp_path / "out"), "--dry-run", "--json"]
    assert cli.run(command) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["largest_pass"]["runs"] == 6
    assert planned["largest_pass"]["memory_bytes"] > 2**20
    assert planned["units"] == 17 and planned["test_rows"] == 12
    assert planned["sides"]["lora r=2"]["learning_rates"] == [7e-05, 0.007, 0.7]


def test_a_resume_without_the_settings_is_refused(tmp_path: Path, capsys):
    for _ in range(2):
        assert cli.run(["compare", "--output", str(tmp_path), "--resume"]) == 6
        assert "has no study.yaml" in capsys.readouterr().err
        (tmp_path / "results.jsonl").write_text("")


@pytest.mark.slow
def test_a_study_ends_in_a_table_and_a_report(
    small_base: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    fix_costs(monkeypatch)
    path, out = write_study(tmp_path, small_base, measures=["exact_match"]), tmp_path / "out"
    assert cli.run(["compare", str(path), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "reference" in printed and "10 ms" in printed and str(out / "report.html") in printed
    first = (out / "report.html").read_bytes(), (out / "results.json").read_bytes()
    assert cli.run(["compare", "--output", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "lora r=2"
    assert first == ((out / "report.html").read_bytes(), (out / "results.json").read_bytes())


def test_a_broken_study_ends_with_status_2_before_anything_is_written(
    small_base: Path, tmp_path: Path, capsys
):
    sides = {"lora": {"method": "lora", "ranks": [0]}}
    path = write_study(tmp_path, small_base, sides=sides)
    assert cli.run(["compare", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "study.yaml:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_must_be_named(capsys):
    assert cli.run(["compare"]) == 2
    assert "no study was named" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), (("90s", 90), ("30min", 1800), ("1.5 h", 5400)))
def test_a_budget_is_a_time(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ("30", "-3min", "0s", "half an hour", "3 days"))
def test_other_budgets_are_refused(text: str):
    with pytest.raises(ConfigError, match="--budget 30min"):
        parse_duration(text)
