"""SIGTERM and read-only folders: one sentence, the documented status, no incomplete files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorica import cli
from lorica.errors import MergeError, ResourceError
from tests.attack.good import write_base, write_rows

WHERE = """
import os, signal, sys, time
from lorica import cli
import {module} as module
def terminate(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)
module.{name} = terminate
sys.argv = ["lorica", *sys.argv[1:]]
cli.main()
"""
TRAIN = ["train", "--base", "base", "--data", "rows.jsonl", "--max_steps", "1", "--output", "out"]
MOMENTS = {
    "load": ("lorica.training.base_model", "load", TRAIN),
    "tokenise": ("lorica.training.prepare", "load_data", TRAIN),
    "eval": (
        "lorica.evaluation.evaluate",
        "evaluate_loaded",
        ["eval", "base", "--data", "rows.jsonl"],
    ),
    "merge": ("lorica.formats.merge", "logits_of", ["merge", "run", "--output", "out"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    import lorica

    folder = tmp_path_factory.mktemp("place")
    write_base(folder / "base")
    write_rows(folder / "rows.jsonl")
    lorica.train(
        base=str(folder / "base"),
        data=str(folder / "rows.jsonl"),
        max_steps=1,
        output=str(folder / "run"),
        show=False,
    )
    return folder


@pytest.mark.parametrize(
    "moment",
    [m if m == "tokenise" else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS],
)
def test_sigterm_outside_of_the_loop(place, moment):
    module, name, words = MOMENTS[moment]
    before = sorted(p.name for p in place.iterdir())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WHERE.format(module=module, name=name), *words],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "\nStopped: ended by SIGTERM" in f"\n{done.stderr}", done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in place.iterdir()) == before


def test_an_evaluation_of_a_run_that_cannot_be_written(place, monkeypatch, capsys):
    from lorica.evaluation import evaluate

    def refuse(*args):
        raise ResourceError("cannot write run/results.json: Read-only file system.")

    monkeypatch.setattr(evaluate, "record", refuse)
    monkeypatch.chdir(place)
    before = (place / "run/results.json").read_bytes()
    assert cli.run(["eval", "run", "--data", "rows.jsonl", "--no-exact-match"]) == 0
    printed = capsys.readouterr().out
    assert "loss" in printed
    assert "these results are not added to the run: cannot write" in printed
    assert (place / "run/results.json").read_bytes() == before


def test_a_refused_merge_is_not_a_usage_error():
    assert MergeError("x").exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--seed", str(2**62)],
        ["train", "--seed", str(2**32)],
        ["train", "--gradient_accumulation_steps", str(10**12)],
        ["train", "--micro_batch_size", str(10**12)],
        ["train", "--method.r", "1" + "0" * 29],
        ["train", "--method.alpha", "1e300"],
        ["train", "--target_modules", "a{99999999999}"],
        ["train", "--target_modules", "(a+)+$|(a+)+$"],
        ["generate", "--seed", str(2**70)],
        ["generate", "--seed", "-1"],
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_settings_out_of_bounds_are_usage_errors(place, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    command, *rest = words
    given = {
        "generate": ["--prompt", "a", "--base", "base"],
        "train": ["--base", "base", "--data", "rows.jsonl", "--max_steps", "1", "--output", "out"],
    }
    assert cli.run([command, *rest, *given[command]]) == 2
    printed = capsys.readouterr().err
    assert re.search("^(ConfigError|TargetError)", printed, re.MULTILINE)
    assert not (place / "out").exists()
