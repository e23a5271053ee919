"""What a run says about itself, and what `eval` says of rows that were trained on."""

import json
import math

import pytest

import lorica
from lorica import cli
from lorica.errors import ConfigError
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
        base="bundled", data={"path": str(rows), "validation": 0}, max_steps=1,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "lora on bundled: 12 training rows of" in said and "tokens are learned" in said
    new = tmp_path / "new.jsonl"
    new.write_text(rows.read_text().splitlines()[0] + "\n")
    with new.open("a") as file:
        file.write(json.dumps({"prompt": "Say more. ", "completion": "No."}) + "\n")
    report = lorica.evaluate(done.folder, str(new), exact_match=False)
    assert any(line.startswith("1 of 2 rows are rows that the run was") for line in report.lines)
    new.write_text(new.read_text().splitlines()[1] + "\n")
    report = lorica.evaluate(done.folder, str(new), exact_match=False)
    assert not any("was trained on" in line for line in report.lines)


def test_a_first_loss_above_a_guess_is_named():
    (notice,) = notices_of_first_loss(math.log(512) + 0.01, 512)
    assert "6.25" in notice and "6.24" in notice and "512" in notice
    assert notices_of_first_loss(math.log(512) - 0.01, 512) == []
    assert notices_of_first_loss(9.0, None) == []  # a classifier's fresh head
