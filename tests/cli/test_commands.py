"""The commands on a small base and small data: what they print, and their JSON."""

import dataclasses
import inspect
import json
import shutil

import pytest
import torch

import lorica
from lorica import cli
from lorica.base.load import load as load_base
from lorica.cli.merge import merge
from lorica.core.adapter import Method
from lorica.formats.merge import LIMIT
from lorica.recipe.catalogue import method, methods
from tests.small_base import VOCABULARY, model

VALUES = sum(p.numel() for p in model().parameters())


def run_json(capsys, *words: object) -> dict:
    assert cli.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, small_base):
    """A run of three steps on a few rows."""
    folder = tmp_path_factory.mktemp("job")
    rows = [{"q": f"Tom has {i} cats.", "a": f" He has {i} cats and a dog."} for i in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = folder / "job.yaml"
    recipe.write_text(
        f"base: {small_base}\ndata: {{path: rows.jsonl, columns: {{prompt: q, completion: a}}}}\n"
        f"learning_rate: 5e-3\nmax_steps: 9\noutput: {folder / 'run'}\n"
    )
    assert cli.run(["train", str(recipe), "--max-steps", "3", "--method.r", "2", "--json"]) == 0
    return folder / "run"


def test_train_prints_its_figures(capsys, tmp_path, small_base):
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"Tom has {i} dogs."}) for i in range(9))
    )
    words = ["--data", tmp_path / "rows.jsonl", "--base", small_base, "--max_steps", 1]
    words += ["--data.validation", 0, "--output", tmp_path / "r"]
    printed = run_json(capsys, "train", *words)
    assert printed["steps"] == 1 and printed["folder"] == str(tmp_path / "r")
    assert cli.run(["train", "--resume", str(tmp_path / "nowhere")]) == 2


def test_check(capsys, run_folder, small_base):
    words = [
        "--base",
        small_base,
        "--data",
        run_folder.parent / "rows.jsonl",
        "--data.columns",
        '{"prompt": "q", "completion": "a"}',
    ]
    printed = run_json(capsys, "check", *words)
    assert printed["rows"] == 20 and printed["problems"] == []
    assert cli.run(["check", *map(str, words)]) == 0
    assert "«" in capsys.readouterr().out
    assert cli.run(["check", *map(str, words), "--data.max_length", "5"]) == 3
    assert "problem" in capsys.readouterr().out
    assert cli.run(["check", "--base", str(small_base), "--data", "nowhere.jsonl"]) == 3


def test_characters_without_an_encoding_are_printed_as_escapes(capfd, tmp_path):
    """Half a surrogate pair in the name of a column that is not learned."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b", "\\ud800": "c"}\n' * 4, encoding="utf-8")
    assert cli.run(["check", "--base", "bundled", "--data", str(rows)]) == 0
    assert "\\ud800" in capfd.readouterr().out


def test_eval_uses_the_columns_of_the_run(capsys, run_folder):
    rows = run_folder.parent / "rows.jsonl"
    printed = run_json(
        capsys, "eval", run_folder, "--data", rows, "--data.limit", 4, "--no-exact-match"
    )
    assert printed["path"] == str(run_folder) and printed["data"] == str(rows)
    assert set(printed["measures"]) >= {"loss", "perplexity"}


def test_a_run_is_loaded_like_its_adapter(run_folder, small_base):
    first, second = load_base(str(small_base)).model, load_base(str(small_base)).model
    lorica.load(first, run_folder)
    lorica.load(second, run_folder / "adapter")
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(first(ids).logits, second(ids).logits)


def test_generate(capsys, run_folder, small_base):
    printed = run_json(
        capsys,
        "generate",
        run_folder,
        "--prompt",
        "Tom has",
        "--prompt",
        "A dog",
        "--max-new-tokens",
        4,
    )
    assert [text["prompt"] for text in printed["texts"]] == ["Tom has", "A dog"]
    assert printed["tokens"] <= 8 and printed["tokens_per_second"] > 0
    for words in (["--base", str(small_base)], [str(small_base)]):
        assert cli.run(["generate", *words, "--prompt", "Once", "--max-new-tokens", "3"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() and "tokens/s" in err
    both = ["generate", str(small_base), "--base", str(small_base), "--prompt", "x"]
    assert cli.run(both) == 2


def test_resuming_a_run_that_has_ended_prints_that_nothing_was_trained(capsys, run_folder):
    assert cli.run(["train", "--resume", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    assert "this run has ended after 3 steps; nothing was trained" in printed
    assert "tokens/s" not in printed


def test_merge(capsys, run_folder, tmp_path):
    printed = run_json(capsys, "merge", run_folder, "--output", tmp_path / "merged")
    assert printed["folder"] == str(tmp_path / "merged") and printed["lost"] < LIMIT
    assert cli.run(["merge", str(run_folder), "--output", str(tmp_path / "merged")]) == 4
    words = ["merge", str(run_folder), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert cli.run([*words, "--limit", "1e-9"]) == 1
    assert not (tmp_path / "half").exists()
    assert cli.run([*words, "--limit", "1"]) == 0
    assert "the merged model is in" in capsys.readouterr().out
    assert run_json(capsys, "info", tmp_path / "half")["dtypes"] == ["BF16"]


def test_the_limit_of_merge_is_that_of_the_library():
    assert inspect.signature(merge).parameters["limit"].default == LIMIT


def test_chat(capsys, monkeypatch, run_folder):
    messages = iter(["Tom", "", "/reset", "Tom " * 900, "Ben", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(messages))
    assert cli.run(["chat", str(run_folder), "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) >= 3
    assert err.count("DataError: the message takes") == 1


def test_info(capsys, run_folder, small_base):
    run = run_json(capsys, "info", run_folder)
    assert (run["what"], run["state"], run["steps"]) == ("run", "finished", 3)
    assert run["settings"]["method"]["r"] == 2 and run["figures"]["steps"] == 3
    adapter = run_json(capsys, "info", run_folder / "adapter")
    assert adapter == run["adapter"]
    assert adapter["files"] == "as they were saved"
    assert adapter["values"] == run["figures"]["parameters"]["trained"]
    assert adapter["versions"]["lorica"] == lorica.__version__
    base = run_json(capsys, "info", small_base)
    assert (base["what"], base["values"], base["vocab_size"]) == ("base", VALUES, VOCABULARY)
    assert cli.run(["info", str(run_folder)]) == 0
    assert "finished" in capsys.readouterr().out


def test_info_of_damaged_folders(capsys, run_folder, tmp_path):
    copy = shutil.copytree(run_folder / "adapter", tmp_path / "adapter")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert cli.run(["info", str(copy)]) == 6
    (copy / "manifest.json").write_text("{")
    assert cli.run(["info", str(copy)]) == 6
    assert cli.run(["info", str(tmp_path / "nowhere")]) == 6
    plain = shutil.copytree(run_folder / "adapter", tmp_path / "plain")
    (plain / "manifest.json").unlink()
    assert "cannot be verified" in run_json(capsys, "info", plain)["files"]


def test_the_methods_are_those_of_the_registry(capsys):
    printed = run_json(capsys, "methods")
    assert [entry["name"] for entry in printed] == Method.names()
    for entry in printed:
        kind = Method.named(entry["name"])
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert [s["name"] for s in entry["settings"]] == list(fields)
        assert entry["about"] and all(s["note"] for s in entry["settings"])
        for setting in entry["settings"]:
            default = fields[setting["name"]].default
            written = default if isinstance(default, str) else json.dumps(default)
            assert setting["default"] == written
    assert method("lora").title.startswith("LoRA")
    assert cli.run(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods())


def test_help_of_train_lists_every_setting(capsys, monkeypatch):
    from lorica.recipe.validate import setting_names
    from lorica.training.config import TrainConfig

    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in setting_names(TrainConfig):
        assert f"--{name}" in printed
    assert "--method.r" in printed and "--resume" in printed and "0.03" in printed


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        ("check", ["--base", "--seed", "--data.validation"], ["--learning_rate", "--method.r"]),
        ("eval", ["--data.columns", "--data.prompt_template"], ["--data.validation"]),
        ("predict", ["--data.columns", "--data.overlong"], ["--data.completion_only"]),
    ],
)
def test_help_lists_the_settings_with_an_effect(capsys, command, shown, hidden):
    assert cli.run([command, "--help"]) == 0
    words = capsys.readouterr().out.split()
    assert set(shown) <= set(words) and not set(hidden) & set(words)


def test_the_help_of_a_command_has_its_whole_text(capsys):
    assert cli.run(["train", "--help"]) == 0
    assert "Lists are separated by commas" in " ".join(capsys.readouterr().out.split())


def test_no_setting_is_wrapped_in_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["train", "--help"]) == 0
    settings = capsys.readouterr().out.partition("Settings: ")[2].splitlines()
    assert "  --gradient_accumulation_steps INT" in settings
    assert "  --data.format auto|alpaca|prompt|messages|sharegpt|text|label" in settings


def test_every_setting_has_a_line_of_help():
    from lorica.data.config import DataConfig
    from lorica.training.config import TrainConfig

    for settings in (TrainConfig, DataConfig):
        assert all(info.description for info in settings.model_fields.values())


def test_half_a_surrogate_pair_in_an_unused_column(tmp_path, capsys):
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"prompt": "a", "completion": "b", "\\ud800": "c"}\n' * 4, encoding="utf-8")
    words = ["--data", str(rows), "--base", "bundled", "--max_steps", "1", "--output", str(run)]
    assert cli.run(["train", *words, "--data.validation", "0"]) == 0
    assert cli.run(["eval", str(run), "--data", str(rows), "--no-exact-match"]) == 0
    assert cli.run(["info", str(run)]) == 0
    capsys.readouterr()
