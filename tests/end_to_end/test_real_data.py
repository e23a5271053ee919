"""The commands one after the other on real rows: GSM8K by its recipe, and Alpaca by flags."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorica import cli

RECIPE = Path(__file__).parents[2] / "recipes/gsm8k.yaml"


@dataclass(frozen=True)
class Job:
    """One data set: the words for its rows and for its run, and what they must say."""

    rows: list[str]
    run: list[str]
    measured: str
    count: int
    kind: str
    overlong: str
    learned: float  # share of the tokens, at least


def said(capsys, *words: object) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    status = cli.run([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


@pytest.fixture(params=["gsm8k", pytest.param("alpaca", marks=pytest.mark.slow)])
def job(request, shared) -> Job:
    instruct, base = shared / "data/instruct", str(shared / "data/models/tinystories-656k")
    few = ["--data.limit", "400"]
    if request.param == "gsm8k":
        rows = [str(RECIPE), "--base", base, "--data", str(instruct / "gsm8k/train.jsonl"), *few]
        measured = str(instruct / "gsm8k/test.jsonl")
        return Job(rows, ["--max_steps", "4"], measured, 400, "prompt", "are dropped", 0.55)
    path = str(instruct / "alpaca_1k/alpaca_data_1k.json")
    rows = ["--base", base, "--data", path, "--data.overlong", "truncate", *few]
    steps = ["--max_steps", "4", "--learning_rate", "2e-3"]
    return Job(rows, steps, path, 400, "alpaca", "lose their ends", 0.4)


def test_from_check_to_merge(job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = said(capsys, "check", *job.rows)
    assert (report["rows"], report["kinds"]) == (job.count, {job.kind: job.count})
    assert report["train"] + report["validation"] + report["dropped"] == job.count
    assert report["problems"] == [] and report["unlearned"] == 0
    assert job.learned < report["label_share"] < 0.9
    assert report["max_length"] == 512 < report["longest"]

    figures = said(capsys, "train", *job.rows, *job.run, "--output", "run")
    assert figures["steps"] == 4 and figures["rows"]["train"] == report["train"]
    assert figures["held_out_loss"]["after"] < figures["held_out_loss"]["before"]
    lines = "\n".join(figures["lines"])
    assert f"{job.count} rows hold characters that the tokenizer cannot write" in lines
    assert " # " in lines and " = " in lines  # of "####" and of 48/2 = 24, say
    assert f"are longer than 512 tokens and {job.overlong}" in lines

    measured = said(
        capsys, "eval", "run", "--data", job.measured, "--data.limit", 6, "--max-new-tokens", 8
    )
    assert measured["rows"] == 6
    found = {measure["name"]: measure for measure in _measures(measured)}
    assert found["loss"]["adapter"]["value"] < found["loss"]["base"]["value"]
    assert set(found) >= {"loss", "perplexity", "token_accuracy", "exact_match"}

    written = said(capsys, "generate", "run", "--prompt", "Tom has 3 cats.", "--max-new-tokens", 8)
    merged = said(capsys, "merge", "run", "--output", "merged")
    assert merged["lost"] < 0.05 and merged["effect"] > 1e-5
    again = said(capsys, "generate", "merged", "--prompt", "Tom has 3 cats.", "--max-new-tokens", 8)
    assert again["texts"] == written["texts"]

    about = said(capsys, "info", "run")
    assert about["state"] == "finished" and about["adapter"]["files"] == "as they were saved"
    assert said(capsys, "info", "merged")["values"] == 656_000


@pytest.mark.slow
def test_what_a_person_reads(job, tmp_path, monkeypatch, capsys):
    """The same without --json: the lines that say what is lost are there to be read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["check", *job.rows]) == 0
    answers = " ".join(capsys.readouterr().out.split())
    assert "hold characters that the tokenizer cannot write" in answers
    assert (
        f"{job.count:,} {job.kind}" in answers and "<|start_story|>" in answers and "«" in answers
    )
    assert cli.run(["train", *job.rows, *job.run, "--output", "run"]) == 0
    out, err = capsys.readouterr()
    assert "of 656,000 parameters are trained" in err and "step 4/4" in err
    assert "the run is in run, its adapter in run/adapter" in out
    words = ["eval", "run", "--data", job.measured, "--data.limit", "6", "--max-new-tokens", "4"]
    assert cli.run(words) == 0
    out, _ = capsys.readouterr()
    assert "perplexity" in out and "few rows (6 rows)" in out
    assert max(map(len, out.split("in brackets")[0].splitlines()[1:])) <= 80
    assert cli.run(["info", "run"]) == 0
    out, _ = capsys.readouterr()
    assert "finished" in out and "{'" not in out
    assert max(map(len, out.splitlines())) < 400


def _measures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The measures with their names."""
    return [{"name": name, **one} for name, one in report["measures"].items()]
