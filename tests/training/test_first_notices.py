"""What a run says about itself, and what `eval` says of rows that were trained on."""

import json
import math
import os
import shutil

import numpy as np
import pytest

import lorica
from lorica import cli
from lorica.errors import ConfigError
from lorica.evaluation.trained_rows import seen_in_training
from lorica.training.watch import notices_of_first_loss


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    asked = [{"prompt": f"Say {i}. ", "completion": f"{i} it is."} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return path


@pytest.mark.parametrize("given", [{}, {"method": "dora"}, {"seed": 3}], ids=str)
def test_a_base_is_named_or_nothing_is_trained(rows, tmp_path, given):
    with pytest.raises(ConfigError, match="no base was named") as error:
        lorica.train(data=str(rows), output=str(tmp_path / "run"), show=False, **given)
    assert "--base" in str(error.value.fix) and not (tmp_path / "run").exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {rows}\noutput: {tmp_path / 'run'}\n")
    assert cli.run(["train", str(recipe)]) == 2


def test_rows_that_a_run_was_trained_on_are_named(rows, tmp_path, capsys):
    done = lorica.train(
        base="bundled",
        data={"path": str(rows), "validation": 0},
        max_steps=1,
        output=str(tmp_path / "run"),
    )
    printed = capsys.readouterr().err
    assert "lora on bundled: 12 training rows of" in printed and "tokens are learned" in printed
    new = tmp_path / "new.jsonl"
    new.write_text(rows.read_text().splitlines()[0] + "\n")
    with new.open("a") as file:
        file.write(json.dumps({"prompt": "Say more. ", "completion": "No."}) + "\n")
    report = lorica.evaluate(done.folder, str(new), exact_match=False)
    assert any(
        line.startswith("in the training data of this run: 1 of 2 rows") for line in report.notices
    )
    new.write_text(new.read_text().splitlines()[1] + "\n")
    report = lorica.evaluate(done.folder, str(new), exact_match=False)
    assert not any("training data of this run" in line for line in report.notices)


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


DAMAGED = {
    "no multiple of 8": lambda path: path.write_bytes(path.read_bytes() + b"abc"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b"x" * len(path.read_bytes())),
    "3 GB": lambda path: sparse(path, 3 * 10**9),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "link": lambda path: path.rename(path.with_name("other")).parent and path.symlink_to("other"),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    asked = [{"prompt": f"Say {i}. ", "completion": f"{i} it is."} for i in range(12)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in asked))
    lorica.train(
        base="bundled",
        data={"path": str(data), "validation": 0},
        max_steps=1,
        show=False,
        output=str(folder / "run"),
    )
    return folder


@pytest.mark.parametrize("results", [True, False], ids=["results", "no results"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_rows_of_a_run_that_are_not_known_are_a_notice(trained, tmp_path, damage, results):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    path = run / "rows.sha"
    DAMAGED[damage](path)
    if not results:
        (run / "results.json").unlink()
    notices = seen_in_training(run, np.array([b"0" * 16]))
    if results or damage not in ("cut", "other bytes"):  # only results.json tells these
        assert len(notices) == 1
        assert notices[0].startswith("it is unknown which rows the run was trained on: ")
        assert str(path) in notices[0]


def test_an_evaluation_of_a_run_without_its_rows_gives_its_figures(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    DAMAGED["no multiple of 8"](run / "rows.sha")
    report = lorica.evaluate(run, str(trained / "rows.jsonl"), exact_match=False, limit=2)
    assert report.measures and any("99 bytes, and" in line for line in report.notices)


def test_a_first_loss_above_a_uniform_guess_is_a_notice():
    (notice,) = notices_of_first_loss(math.log(512) + 0.01, 512)
    assert "6.25" in notice and "6.24" in notice and "512" in notice
    assert notices_of_first_loss(math.log(512) - 0.01, 512) == []
    assert notices_of_first_loss(9.0, None) == []  # a classifier's fresh head
