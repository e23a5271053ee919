"""The commands on real models and small data: what they print, and their JSON."""

import dataclasses
import inspect
import json
import shutil

import pytest
import torch

import lorica
from lorica import cli
from lorica.base.load import load as load_base
from lorica.cli.catalogue import method, methods
from lorica.cli.merge import merge
from lorica.core.adapter import Method
from lorica.formats.merge import LIMIT


def run_json(capsys, *words: object) -> dict:
    assert cli.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, stories):
    """A run of three steps on a few rows."""
    folder = tmp_path_factory.mktemp("job")
    rows = [{"q": f"Tom has {i} cats.", "a": f" He has {i} cats and a dog."} for i in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = folder / "job.yaml"
    recipe.write_text(
        f"base: {stories}\ndata: {{path: rows.jsonl, columns: {{prompt: q, completion: a}}}}\n"
        f"learning_rate: 5e-3\nmax_steps: 9\noutput: {folder / 'run'}\n"
    )
    assert cli.run(["train", str(recipe), "--max-steps", "3", "--method.r", "2", "--json"]) == 0
    return folder / "run"


def test_train_prints_its_figures(capsys, tmp_path, stories):
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"Tom has {i} dogs."}) for i in range(9))
    )
    words = ["--data", tmp_path / "rows.jsonl", "--base", stories, "--max_steps", 1]
    words += ["--data.validation", 0, "--output", tmp_path / "r"]
    told = run_json(capsys, "train", *words)
    assert told["steps"] == 1 and told["folder"] == str(tmp_path / "r")
    assert cli.run(["train", "--resume", str(tmp_path / "nowhere")]) == 2


def test_check(capsys, run_folder, stories):
    words = [
        "--base",
        stories,
        "--data",
        run_folder.parent / "rows.jsonl",
        "--data.columns",
        '{"prompt": "q", "completion": "a"}',
    ]
    told = run_json(capsys, "check", *words)
    assert told["rows"] == 20 and told["problems"] == []
    assert cli.run(["check", *map(str, words)]) == 0
    assert "«" in capsys.readouterr().out
    assert cli.run(["check", *map(str, words), "--data.max_length", "5"]) == 3
    assert "problem" in capsys.readouterr().out
    assert cli.run(["check", "--base", str(stories), "--data", "nowhere.jsonl"]) == 3


def test_signs_that_no_encoding_has_are_printed_as_escapes(capfd, tmp_path):
    """Half a surrogate pair in a column's name: it is not of the text that is learned."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b", "\\ud800": "c"}\n' * 4, encoding="utf-8")
    assert cli.run(["check", "--base", "bundled", "--data", str(rows)]) == 0
    assert "\\ud800" in capfd.readouterr().out


def test_eval_takes_the_columns_of_the_run(capsys, run_folder):
    rows = run_folder.parent / "rows.jsonl"
    told = run_json(
        capsys, "eval", run_folder, "--data", rows, "--data.limit", 4, "--no-exact-match"
    )
    assert told["path"] == str(run_folder) and told["data"] == str(rows)
    assert set(told["measures"]) >= {"loss", "perplexity"}


def test_a_run_is_loaded_as_an_adapter_is(run_folder, stories):
    first, second = load_base(str(stories)).model, load_base(str(stories)).model
    lorica.load(first, run_folder)
    lorica.load(second, run_folder / "adapter")
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(first(ids).logits, second(ids).logits)


def test_generate(capsys, run_folder, stories):
    told = run_json(
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
    assert [text["prompt"] for text in told["texts"]] == ["Tom has", "A dog"]
    assert told["tokens"] <= 8 and told["tokens_per_second"] > 0
    for words in (["--base", str(stories)], [str(stories)]):
        assert cli.run(["generate", *words, "--prompt", "Once", "--max-new-tokens", "3"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() and "tokens/s" in err
    both = ["generate", str(stories), "--base", str(stories), "--prompt", "x"]
    assert cli.run(both) == 2


def test_merge(capsys, run_folder, tmp_path):
    told = run_json(capsys, "merge", run_folder, "--output", tmp_path / "merged")
    assert told["folder"] == str(tmp_path / "merged") and told["lost"] < LIMIT
    assert cli.run(["merge", str(run_folder), "--output", str(tmp_path / "merged")]) == 4
    words = ["merge", str(run_folder), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert cli.run([*words, "--limit", "1e-9"]) == 1
    assert not (tmp_path / "half").exists()
    assert cli.run([*words, "--limit", "1"]) == 0
    assert "the merged model is in" in capsys.readouterr().out
    assert run_json(capsys, "info", tmp_path / "half")["dtypes"] == ["BF16"]


def test_limit_of_merge_is_the_library_s():
    assert inspect.signature(merge).parameters["limit"].default == LIMIT


def test_chat(capsys, monkeypatch, run_folder):
    said = iter(["Tom", "", "/reset", "Tom " * 900, "Ben", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(said))
    assert cli.run(["chat", str(run_folder), "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) >= 3
    assert err.count("DataError: the message takes") == 1


def test_info(capsys, run_folder, stories):
    run = run_json(capsys, "info", run_folder)
    assert (run["what"], run["state"], run["steps"]) == ("run", "finished", 3)
    assert run["settings"]["method"]["r"] == 2 and run["figures"]["steps"] == 3
    adapter = run_json(capsys, "info", run_folder / "adapter")
    assert adapter == run["adapter"]
    assert adapter["files"] == "as they were saved"
    assert adapter["values"] == run["figures"]["parameters"]["trained"]
    assert adapter["versions"]["lorica"] == lorica.__version__
    base = run_json(capsys, "info", stories)
    assert (base["what"], base["values"], base["vocab_size"]) == ("base", 260_032, 512)
    assert cli.run(["info", str(run_folder)]) == 0
    assert "finished" in capsys.readouterr().out


def test_info_of_what_is_damaged(capsys, run_folder, tmp_path, shared):
    copy = shutil.copytree(run_folder / "adapter", tmp_path / "adapter")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert cli.run(["info", str(copy)]) == 6
    (copy / "manifest.json").write_text("{")
    assert cli.run(["info", str(copy)]) == 6
    assert cli.run(["info", str(tmp_path / "nowhere")]) == 6
    peft = shared / "referee/peft-reference/lora-rslora"
    assert "cannot be verified" in run_json(capsys, "info", peft)["files"]


def test_methods_are_those_of_the_registry(capsys):
    told = run_json(capsys, "methods")
    assert [entry["name"] for entry in told] == Method.names()
    for entry in told:
        kind = Method.named(entry["name"])
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert [s["name"] for s in entry["settings"]] == list(fields)
        assert entry["about"] and all(s["note"] for s in entry["settings"])
        for setting in entry["settings"]:
            want = fields[setting["name"]].default
            assert setting["default"] == (want if isinstance(want, str) else json.dumps(want))
    assert method("lora").title.startswith("LoRA")
    assert cli.run(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods())


def test_help_of_train_lists_every_setting(capsys, monkeypatch):
    from lorica.recipe.validate import setting_names
    from lorica.training.config import TrainConfig

    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["train", "--help"]) == 0
    told = capsys.readouterr().out
    for name in setting_names(TrainConfig):
        assert f"--{name}" in told
    assert "--method.r" in told and "--resume" in told and "0.03" in told


def test_every_setting_has_a_line_of_help():
    from lorica.data.config import DataConfig
    from lorica.training.config import TrainConfig

    for model in (TrainConfig, DataConfig):
        assert all(info.description for info in model.model_fields.values())


def test_half_a_pair_in_a_column_that_is_not_used(tmp_path, capsys):
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"prompt": "a", "completion": "b", "\\ud800": "c"}\n' * 4, encoding="utf-8")
    words = ["--data", str(rows), "--base", "bundled", "--max_steps", "1", "--output", str(run)]
    assert cli.run(["train", *words, "--data.validation", "0"]) == 0
    assert cli.run(["eval", str(run), "--data", str(rows), "--no-exact-match"]) == 0
    assert cli.run(["info", str(run)]) == 0
    capsys.readouterr()
