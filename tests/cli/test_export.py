"""The command lorica export."""

import json

import pytest

import lorica
from lorica import Dora, Lora, cli
from lorica.base.load import load
from tests.laws.bases import move


@pytest.fixture
def saved(small_base, tmp_path):
    """Folders of a LoRA and of a DoRA."""
    for kind in (Lora, Dora):
        base = load(str(small_base))
        move(lorica.adapt(base.model, kind(r=2, alpha=3), target_modules=["q_proj"]))
        lorica.save(base.model, tmp_path / kind.name, tokenizer=base.tokenizer)
    return tmp_path


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_export_prints_the_ranks_and_the_difference(saved, capsys):
    assert run("export", saved / "lora", "--to", "lora", "--output", saved / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lora as a plain LoRA: 2 layers, rank 2 to 2"
    assert lines[1].startswith("logits differ by at most ")
    assert lines[-1] == f"the LoRA is in {saved / 'out'}"
    config = json.loads((saved / "out/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)


def test_json(saved, capsys):
    assert run("export", saved / "lora", "--output", saved / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folder"] == str(saved / "out") and report["method"] == "lora"
    assert report["exact"] is True and report["max_difference"] < 1e-4 < report["max_effect"]
    assert set(report["ranks"].values()) == {2} and report["tokens"] > 100


def test_an_update_of_full_rank_needs_a_rank(saved, capsys):
    assert run("export", saved / "dora", "--output", saved / "out") == 1
    error = capsys.readouterr().err
    assert "lorica merge" in error and "--rank R" in error
    assert not (saved / "out").exists()
    assert run("export", saved / "dora", "--output", saved / "out", "--rank", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact"] is False and 0 < max(report["errors"].values()) < 1
    assert 0 < report["kl"] < report["effect"]


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--rank", "0"], 2, "rank is 0"),
        (["--rank", "two"], 2, "two"),
        (["--to", "gguf"], 2, "gguf"),
        (["--base", "nowhere/at/all"], 2, "nowhere/at/all"),
    ],
)
def test_mistakes(saved, capsys, words, code, message):
    assert run("export", saved / "lora", "--output", saved / "out", *words) == code
    assert message in capsys.readouterr().err
    assert not (saved / "out").exists()


def test_an_existing_output_is_not_overwritten(saved, capsys):
    (saved / "out").mkdir()
    (saved / "out/mine.txt").write_text("years of work")
    assert run("export", saved / "lora", "--output", saved / "out") == 4
    assert (saved / "out/mine.txt").read_text() == "years of work"
