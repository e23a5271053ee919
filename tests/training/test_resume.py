"""A run that is stopped and taken up again ends with the bits of the uninterrupted one."""

import json
import shutil

import pytest

import lorica
from lorica.errors import DataError, FileError, LoricaError
from lorica.training.checkpoint import steps
from lorica.training.run import read_events
from lorica.training.train import train
from tests.training.rows import adapter, interrupt, same, settings

CASES = {
    "lora": {},
    "dropout": {"method": {"name": "lora", "r": 4, "dropout": 0.3}},
    "dora": {"method": {"name": "dora", "r": 2}},
    "full": {"method": "full", "target_modules": None, "learning_rate": 1e-4},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "accumulation": {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
    "two epochs": {"max_steps": None, "epochs": 2.0},
    "evaluated": {"eval_steps": 2, "early_stopping_patience": 3},
    "checkpointing": {"gradient_checkpointing": True, "method": {"name": "lora", "dropout": 0.2}},
    "bfloat16": {"dtype": "bfloat16"},
}


QUICK = ("dropout", "evaluated")


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_resume_is_bit_identical(small_base, tmp_path, monkeypatch, case):
    changed = {"save_steps": 2, "max_steps": 6, **CASES[case]}
    whole = lorica.train(**settings(small_base, tmp_path / "a", **changed), show=False)
    cut = settings(small_base, tmp_path / "b", **changed)
    interrupt(monkeypatch, 5, **cut)
    result = lorica.train(resume=cut["output"], show=False)
    assert same(adapter(whole.folder), adapter(result.folder))
    keep = ("steps", "train_loss", "held_out_loss", "tokens")
    assert {k: result.figures[k] for k in keep} == {k: whole.figures[k] for k in keep}


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_again(small_base, tmp_path, monkeypatch):
    whole = lorica.train(**settings(small_base, tmp_path / "a"), show=False)
    cut = settings(small_base, tmp_path / "b", save_steps=4)
    interrupt(monkeypatch, 1, **cut)
    assert same(
        adapter(whole.folder), adapter(lorica.train(resume=cut["output"], show=False).folder)
    )


def test_a_finished_run_is_left_as_it_is(small_base, tmp_path):
    done = lorica.train(**settings(small_base, tmp_path), show=False)
    before = adapter(done.folder)
    again = lorica.train(resume=done.folder, show=False)
    assert same(before, adapter(again.folder))


def test_only_the_newest_checkpoints_are_kept(small_base, tmp_path):
    result = lorica.train(
        **settings(small_base, tmp_path, save_steps=1, keep_checkpoints=2), show=False
    )
    assert [p.name for p in steps(result.folder / "checkpoints")] == [
        "step-00000005",
        "step-00000006",
    ]


def test_other_rows_are_refused(small_base, tmp_path, monkeypatch):
    cut = settings(small_base, tmp_path, save_steps=2)
    interrupt(monkeypatch, 3, **cut)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "a new", "completion": "row"}\n')
    with pytest.raises(DataError, match="rows are not those"):
        lorica.train(resume=cut["output"], show=False)


@pytest.mark.parametrize(
    "file",
    [
        "optimizer.safetensors",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("adapter.safetensors", "state.json")),
    ],
)
def test_a_damaged_checkpoint_is_named(small_base, tmp_path, monkeypatch, file):
    cut = settings(small_base, tmp_path, save_steps=2)
    interrupt(monkeypatch, 5, **cut)
    newest = steps(tmp_path / "run" / "checkpoints")[-1]
    path = newest / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileError, match="damaged") as caught:
        lorica.train(resume=cut["output"], show=False)
    assert str(newest) in str(caught.value)
    shutil.rmtree(newest)  # what the message says
    lorica.train(resume=cut["output"], show=False)


def test_the_log_holds_every_step_once_more_after_a_resume(small_base, tmp_path, monkeypatch):
    cut = settings(small_base, tmp_path, save_steps=2)
    interrupt(monkeypatch, 5, **cut)
    log = tmp_path / "run" / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "st')  # a line that a kill cut short
    lorica.train(resume=cut["output"], show=False)
    events = read_events(tmp_path / "run")
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4, 5, 5, 6]
    assert [e["event"] for e in events if e["event"] in ("start", "resume", "end")] == [
        "start",
        "resume",
        "end",
    ]


def test_resume_takes_no_other_settings(small_base, tmp_path):
    with pytest.raises(LoricaError, match="keeps its settings"):
        lorica.train("recipe.yaml", resume=tmp_path)
    with pytest.raises(LoricaError, match="no run folder"):
        lorica.train(resume=tmp_path)


def test_results_are_plain_numbers(small_base, tmp_path):
    result = lorica.train(**settings(small_base, tmp_path), show=False)
    on_disk = json.loads((result.folder / "results.json").read_text())
    assert on_disk == result.figures
    assert on_disk["held_out_loss"]["after"] < on_disk["held_out_loss"]["before"]


@pytest.mark.parametrize("until", (2, 3))
def test_a_run_that_paused_goes_on_as_if_it_had_not(small_base, tmp_path, until):
    whole = lorica.train(**settings(small_base, tmp_path / "a"), show=False)
    config = settings(small_base, tmp_path / "b")
    half = train(**config, until=until, show=False)
    assert not (half.folder / "results.json").exists()
    assert [e["step"] for e in read_events(half.folder) if e["event"] == "eval"] == [0, until]
    result = train(resume=half.folder, show=False)
    assert same(adapter(whole.folder), adapter(result.folder))
    assert result.figures["held_out_loss"] == whole.figures["held_out_loss"]
