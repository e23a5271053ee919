"""lorica export: an adapter as a plain LoRA, by the command."""

import json

import pytest

import lorica
from lorica import Dora, Lora, cli
from lorica.base.load import load
from tests.laws.bases import move


@pytest.fixture
def saved(stories, tmp_path):
    """Folders of a LoRA and of a DoRA."""
    for kind in (Lora, Dora):
        base = load(str(stories))
        move(lorica.adapt(base.model, kind(r=2, alpha=3), target_modules=["q_proj"]))
        lorica.save(base.model, tmp_path / kind.name, tokenizer=base.tokenizer)
    return tmp_path


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_what_it_says(saved, capsys):
    assert run("export", saved / "lora", "--to", "lora", "--output", saved / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lora as a plain LoRA: 5 layers, rank 2 to 2"
    assert lines[1].startswith("logits differ by at most ")
    assert lines[-1] == f"the LoRA is in {saved / 'out'}"
    config = json.loads((saved / "out/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)


def test_json(saved, capsys):
    assert run("export", saved / "lora", "--output", saved / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(saved / "out") and told["method"] == "lora"
    assert told["exact"] is True and told["max_difference"] < 1e-4 < told["max_effect"]
    assert set(told["ranks"].values()) == {2} and told["tokens"] > 100


def test_full_rank_needs_a_rank(saved, capsys):
    assert run("export", saved / "dora", "--output", saved / "out") == 1
    told = capsys.readouterr().err
    assert "lorica merge" in told and "--rank R" in told
    assert not (saved / "out").exists()
    assert run("export", saved / "dora", "--output", saved / "out", "--rank", 2, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] is False and 0 < max(told["errors"].values()) < 1
    assert 0 < told["kl"] < told["effect"]


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--rank", "0"], 2, "rank is 0"),
        (["--rank", "two"], 2, "two"),
        (["--to", "gguf"], 2, "gguf"),
        (["--base", "nowhere/at/all"], 2, "nowhere/at/all"),
    ],
)
def test_mistakes(saved, capsys, words, code, said):
    assert run("export", saved / "lora", "--output", saved / "out", *words) == code
    assert said in capsys.readouterr().err
    assert not (saved / "out").exists()


def test_an_output_that_is_there_stays(saved, capsys):
    (saved / "out").mkdir()
    (saved / "out/mine.txt").write_text("years of work")
    assert run("export", saved / "lora", "--output", saved / "out") == 4
    assert (saved / "out/mine.txt").read_text() == "years of work"
