"""A run on rows with conditions, and the commands that take one."""

import io
import json

import pytest

from lorica import cli

KINDS = {"en-fr": " aime", "en-de": " liebt", "fr-de": " hat"}


def run_json(capsys, *words: object) -> dict:
    assert cli.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def write(path, **columns):
    rows = [
        {"prompt": f"Tom {i}", "completion": KINDS[kind], "direction": kind}
        for i in range(10)
        for kind in KINDS
    ]
    path.write_text("\n".join(json.dumps({**row, **columns}) for row in rows))
    return path


@pytest.fixture(scope="module")
def job(tmp_path_factory, small_base):
    """A run of thirty steps, after which the conditions differ."""
    folder = tmp_path_factory.mktemp("job")
    write(folder / "rows.jsonl")
    (folder / "job.yaml").write_text(
        f"base: {small_base}\ndata: {{path: rows.jsonl, columns: {{condition: direction}}}}\n"
        "method: {name: hyperlora, condition: pair, r: 4, latent: 16, hidden: 8}\n"
        f"learning_rate: 2e-2\nmax_steps: 30\noutput: {folder / 'run'}\n"
    )
    assert cli.run(["train", str(folder / "job.yaml"), "--json"]) == 0
    return folder


def test_the_adapter_records_the_conditions_of_its_rows(job):
    manifest = json.loads((job / "run/adapter/manifest.json").read_text())
    assert manifest["method"]["conditions"] == sorted(KINDS)
    events = [json.loads(line) for line in (job / "run/events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert 0 < steps[0]["penalty"] < 0.01


def test_generate_takes_one_condition_for_all_or_one_each(job, capsys):
    words = ["generate", job / "run", "--prompt", "Tom 1", "--prompt", "Tom 2"]
    words += ["--max_new_tokens", 5]
    both = run_json(capsys, *words, "--condition", "en-fr", "--condition", "en-de")["texts"]
    first = run_json(capsys, *words, "--condition", "en-fr")["texts"]
    second = run_json(capsys, *words, "--condition", "en-de")["texts"]
    assert [t["text"] for t in both] == [first[0]["text"], second[1]["text"]]
    assert first != second


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "none is set"),
        (["--condition", "fr-en"], "'fr-en'"),
        (["--condition", "en-fr", "--condition", "en-de"], "2 conditions were given for 1 prompts"),
    ],
    ids=["none", "unseen", "too many"],
)
def test_generate_refuses(job, capsys, words, message):
    assert cli.run(["generate", str(job / "run"), "--prompt", "Tom", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_base_takes_no_condition(small_base, capsys):
    words = ["generate", "--base", str(small_base), "--prompt", "Tom", "--condition", "a"]
    assert cli.run(words) == 2
    assert "takes no condition" in capsys.readouterr().err


def test_eval_reads_the_condition_column_of_the_run(job, capsys):
    report = run_json(
        capsys,
        "eval",
        job / "run",
        "--data",
        job / "rows.jsonl",
        "--data.limit",
        9,
        "--max-new-tokens",
        3,
    )
    assert any("conditions of other rows" in notice for notice in report["lines"])
    assert report["measures"]["loss"]["verdict"] == "better"
    plain = job / "plain.jsonl"
    plain.write_text(json.dumps({"prompt": "Tom", "completion": " ran"}))
    words = ["eval", str(job / "run/adapter"), "--data", str(plain)]
    assert cli.run(words) == 3
    assert "the rows have none" in capsys.readouterr().err


def test_chat_under_a_condition(job, capsys, monkeypatch):
    answers = []
    for kind in ("en-fr", "en-de"):
        monkeypatch.setattr("sys.stdin", io.StringIO("Tom 1\n"))
        words = ["--condition", kind, "--temperature", "0", "--max_new_tokens", "5"]
        assert cli.run(["chat", str(job / "run"), *words]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("kind", ["en-fr", pytest.param("fr-de", marks=pytest.mark.slow)])
def test_merge_and_export_of_one_condition(job, capsys, tmp_path, kind):
    words = ["--prompt", "Tom 1", "--max_new_tokens", 5]
    want = run_json(capsys, "generate", job / "run", *words, "--condition", kind)["texts"]
    report = run_json(capsys, "merge", job / "run", "--output", tmp_path / "m", "--condition", kind)
    assert report["lost"] < 1e-3 and report["effect"] > 0.01
    assert run_json(capsys, "generate", tmp_path / "m", *words)["texts"] == want
    cli_words = ["--output", tmp_path / "l", "--condition", kind]
    assert run_json(capsys, "export", job / "run", *cli_words)["exact"]
    assert run_json(capsys, "generate", tmp_path / "l", *words)["texts"] == want


@pytest.mark.parametrize("command", ["merge", "export"])
def test_merge_and_export_need_a_condition(job, capsys, tmp_path, command):
    status = cli.run([command, str(job / "run"), "--output", str(tmp_path / "out")])
    assert status == {"export": 1}.get(command, 2)
    assert "condition" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_without_conditions_are_refused_before_training(job, capsys, tmp_path):
    words = [f"--output={tmp_path / 'run'}", "--data.columns", "{}"]
    assert cli.run(["train", str(job / "job.yaml"), *words]) == 2
    assert "the training rows have none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_method_without_conditions_has_a_notice(job, capsys, tmp_path):
    words = ["--output", tmp_path / "run", "--method.name", "lora", "--max_steps", "1"]
    write(tmp_path / "rows.jsonl")
    lines = (job / "job.yaml").read_text().splitlines()
    (tmp_path / "job.yaml").write_text("\n".join(x for x in lines if "hyperlora" not in x))
    result = run_json(capsys, "train", tmp_path / "job.yaml", *words)
    assert any("not used: en-de, en-fr, fr-de" in line for line in result["lines"])
