"""A study from its file to its result: what is trained, scored, recorded and removed."""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

import lorica
from lorica.compare import executor, runner, study_run
from lorica.compare.clock import Clock
from lorica.compare.records import RECORDS, Records
from lorica.compare.study import read_study
from lorica.errors import BaseError, ConfigError, DataError, ResourceError, Stopped
from tests.compare.study_files import (
    fix_costs,
    run,
    without_costs,
    write_lines,
    write_study,
)
from tests.marks import at_length


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_every_side_has_its_runs(whole_study):
    _, _, result = whole_study
    assert [side.name for side in result.sides] == ["lora r=2", "ia3"]
    assert result.missing == []
    for side in result.sides:
        assert {trial.steps for trial in side.trials} == {1, 2}
        assert [final.seed for final in side.finals] == [0, 1]
        best = min((t for t in side.trials if t.steps == 2), key=lambda t: t.loss)
        assert {final.learning_rate for final in side.finals} == {best.learning_rate}
        for final in side.finals:
            assert final.error is None and final.forgotten is not None
            assert [step for step, _ in final.curve] == [1, 2]
            assert [step for step, _ in final.validation] == [0, 2]
            assert len(final.scores["loss"].rows) == 12
            assert len(final.samples) == 4
        assert side.cost is not None and side.cost.trained_parameters > 0


def test_the_loss_is_the_weighted_mean_of_its_rows(whole_study):
    _, _, result = whole_study
    for scores in [result.base["loss"], result.sides[0].finals[0].scores["loss"]]:
        assert np.average(scores.rows, weights=scores.weights) == pytest.approx(scores.value)


def test_the_recipe_of_a_side_gives_its_run(whole_study, tmp_path: Path):
    """Trained alone, and not in a pass with others: as good to the last digits."""
    *_, result = whole_study
    side = result.sides[0]
    (tmp_path / "recipe.yaml").write_text(side.recipe + f"output: {tmp_path / 'run'}\nseed: 1\n")
    alone = lorica.train(tmp_path / "recipe.yaml", show=False)
    after = alone.figures["held_out_loss"]["after"]
    assert after == pytest.approx(side.finals[1].validation[-1][1], rel=1e-4)


def test_what_is_not_needed_any_more_is_removed(whole_study):
    _, output, _ = whole_study
    folders = sorted(path.name for path in (output / "runs").iterdir())
    assert folders == [f"final-{i:02d}-seed-{seed}" for i in range(2) for seed in (0, 1)]
    assert not list((output / "runs").rglob("step-*"))


def test_a_final_run_is_kept_and_is_what_was_scored(whole_study):
    path, output, result = whole_study
    report = lorica.evaluate(
        output / "runs/final-00-seed-1", data=str(path.parent / "test.jsonl"), exact_match=False
    )
    adapter = report["loss"].adapter
    assert adapter is not None
    assert adapter.value == pytest.approx(result.sides[0].finals[1].scores["loss"].value)


def test_all_sides_see_the_rows_in_one_order(whole_study):
    """Before the first update all sides are the base, so the first losses are those of the rows."""
    _, _, result = whole_study
    for seed in (0, 1):
        first = [side.finals[seed].curve[0][1] for side in result.sides]
        assert first == pytest.approx([first[0]] * 2, rel=1e-4)
    assert result.sides[0].finals[0].curve[0] != result.sides[0].finals[1].curve[0]


CALLS = at_length((1, 4, 5, 7, 8), (1, 5, 8))
MOMENTS = [(after, written) for after in CALLS for written in (False, True)]
QUICK = [(8, False)]  # in the final runs


@pytest.mark.parametrize(
    ("after", "written"),
    [pytest.param(*m, marks=() if m in QUICK else pytest.mark.slow) for m in MOMENTS],
)
def test_a_killed_study_goes_on_to_the_same_result(
    whole_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, written: bool
):
    """after: calls of Records.append that succeed. The kill is just before or behind the next."""
    path, _, whole = whole_study
    fix_costs(monkeypatch)
    append, calls = Records.append, []

    def killed_append(self: Records, records: list) -> None:
        calls.append(len(records))
        if len(calls) <= after or written:
            append(self, records)
        if len(calls) > after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Records, "append", killed_append)
        run(path, tmp_path / "out")
    with (tmp_path / "out" / RECORDS).open("a") as file:
        file.write('{"kind": "fin')  # what a kill in the middle of a write leaves
    resumed = run(path, tmp_path / "out", resume=True)
    assert without_costs(resumed) == without_costs(whole)


def test_a_study_that_has_ended_trains_nothing_again(
    whole_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, output, whole = whole_study
    monkeypatch.setattr(executor.InProcess, "run", None)
    before = (output / RECORDS).read_bytes()
    assert run(path, output, resume=True) == whole
    assert (output / RECORDS).read_bytes() == before


def test_the_last_unit_is_the_last(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two rates the best is at an edge: rates beyond are tried, which no plan has counted."""
    fix_costs(monkeypatch)
    lines: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        study_run.StudyRun,
        "announce",
        lambda self, text: lines.append((text.split()[0], self.done, self.total)),
    )
    sides = {"lora": {"method": "lora"}}
    changes = {"factors": [0.3, 1.0], "rungs": 1}
    path = write_study(tmp_path, small_base, sides=sides, seeds=[0], rates=changes)
    run(path, tmp_path / "out")
    assert [done for kind, done, total in lines if done == total] == [lines[-1][1]]
    assert lines[-1][0] == "final" and len([line for line in lines if line[0] == "learning"]) > 1


def test_a_run_that_diverges_is_a_result(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fix_costs(monkeypatch)
    sides = {"lora": {"method": "lora"}, "hot": {"method": "full", "learning_rate": 1e12}}
    path = write_study(tmp_path, small_base, sides=sides, seeds=[0], rates=None)
    lora, hot = run(path, tmp_path / "out").sides
    assert lora.finals[0].error is None
    assert hot.finals[0].error and not hot.finals[0].scores
    assert str(tmp_path) not in hot.finals[0].error


@pytest.mark.slow
def test_the_budget_ends_a_study_and_the_result_says_what_is_missing(
    whole_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, _, whole = whole_study
    fix_costs(monkeypatch)
    seconds = iter(range(1000))
    cut = run(path, tmp_path / "out", clock=Clock(budget=8, now=lambda: float(next(seconds))))
    assert cut.missing[0] == "lora r=2: 2 of 2 final runs are missing (seeds 0, 1)"
    assert len(cut.missing) == 2 and cut.missing[1].startswith("ia3: ")
    resumed = run(path, tmp_path / "out", resume=True)
    assert resumed.missing == []
    assert without_costs(resumed) == without_costs(whole)


def test_an_output_is_not_overwritten(whole_study, tmp_path: Path):
    path, output, _ = whole_study
    with pytest.raises(ConfigError, match="add --resume"):
        run(path, output)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another --output"):
        run(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file", "file is a file"),
        ("file/out", "file is a file"),
        ("link", "link is a link that leads nowhere"),
        ("link/out", "link is a link that leads nowhere"),
        ("n" * 300, "cannot be an output"),
        ("locked/out", "locked is not writable"),
    ],
)
def test_an_output_that_cannot_be_a_folder_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_base: Path, name: str, words: str
):
    """Also in a dry run, before the sides are built."""
    path = write_study(tmp_path, small_base)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "locked").mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name != "locked" and may(p, mode))
    monkeypatch.setattr(runner, "expand", None)
    with pytest.raises((ConfigError, ResourceError), match=words):
        run(path, tmp_path / name)
    with pytest.raises((ConfigError, ResourceError), match=words):
        runner.prepare(*read_study(path), tmp_path / name)


@pytest.mark.parametrize("train", ({"epochs": 1e308}, {"epochs": 1e9}, {"max_steps": 10**30}))
def test_absurd_step_counts_are_refused(small_base: Path, tmp_path: Path, train: dict):
    path = write_study(tmp_path, small_base, train=train)
    with pytest.raises(ConfigError, match="a run of a study has at most 10,000,000 steps"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_test_rows_too_few_for_a_verdict_are_noticed(small_base: Path, tmp_path: Path):
    path = write_study(tmp_path, small_base)
    test = tmp_path / "test.jsonl"
    test.write_text(test.read_text().splitlines()[0] + "\n")
    notices = runner.prepare(*read_study(path), tmp_path / "out").rows.notices
    assert f"{test} has 1 row, and a verdict needs at least 3" in notices


def test_other_settings_are_not_resumed(whole_study, small_base: Path):
    path, output, _ = whole_study
    text = path.read_text()
    try:
        path.write_text(text.replace("max_steps: 2", "max_steps: 5"))
        with pytest.raises(ConfigError, match=r"train\.max_steps +2 -> 5"):
            run(path, output, resume=True)
    finally:
        path.write_text(text)


def test_the_settings_of_the_output_cannot_be_edited(whole_study, tmp_path: Path):
    path, output, _ = whole_study
    copy = copied(output, tmp_path)
    file = copy / "study.yaml"
    file.write_text(file.read_text().replace("max_steps: 2", "max_steps: 5"))
    for study in (file, path):
        with pytest.raises(ConfigError, match=r"train\.max_steps +2 -> 5"):
            run(study, copy, resume=True)


@pytest.mark.parametrize("change", ("weights", "tokenizer", "new file"))
def test_another_base_is_not_resumed(whole_study, tmp_path: Path, small_base: Path, change: str):
    path, output, _ = whole_study
    copy, name = copied(output, tmp_path), f"{uuid4().hex}.safetensors"
    if change != "new file":
        files = small_base.glob("*.safetensors" if change == "weights" else "tokenizer.json")
        name = next(files).name
    file = small_base / name
    before = file.read_bytes() if file.exists() else None
    try:
        if before is None:
            shutil.copy(next(small_base.glob("*.safetensors")), file)
        else:
            file.write_bytes(before[:-1] + (b"\x01" if change == "weights" else b" "))
        with pytest.raises(BaseError, match="is not the one that the study") as raised:
            run(path, copy, resume=True)
        assert list(raised.value.facts) == [name]
    finally:
        file.unlink() if before is None else file.write_bytes(before)


def copied(output: Path, folder: Path) -> Path:
    return Path(shutil.copytree(output, folder / "copy"))


@pytest.mark.parametrize("stop", (KeyboardInterrupt(), SystemExit(143)))
@pytest.mark.parametrize("phase", ("measure_cost", "score_base", "search_rates", "run_finals"))
def test_a_signal_names_the_command_that_goes_on(
    small_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    stop: BaseException,
):
    """Outside of a training, which notes signals itself; a command turns SIGTERM into an exit."""

    def interrupted(*_: object) -> None:
        raise stop

    fix_costs(monkeypatch)
    monkeypatch.setattr(runner, "score_base", lambda *_: {"scores": {}, "error": "left out"})
    if phase == "run_finals":
        monkeypatch.setattr(runner, "search_rates", lambda _: True)
    monkeypatch.setattr(runner, phase, interrupted)
    path, out = write_study(tmp_path, small_base), tmp_path / "out"
    with pytest.raises(Stopped, match=f"lorica compare --output {out} --resume") as raised:
        run(path, out)
    assert raised.value.exit_code == (143 if isinstance(stop, SystemExit) else 130)


def test_other_rows_are_not_resumed(whole_study):
    path, output, _ = whole_study
    test = path.parent / "test.jsonl"
    text = test.read_text()
    try:
        test.write_text(text.replace("river", "rivers", 1))
        with pytest.raises(DataError, match="are not those that the study") as raised:
            run(path, output, resume=True)
        assert list(raised.value.facts) == ["test"]
    finally:
        test.write_text(text)


def test_test_rows_that_were_trained_on_are_refused(small_base: Path, tmp_path: Path):
    path = write_study(tmp_path, small_base)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "test.jsonl", rows[:4])
    with pytest.raises(DataError, match="4 of 4 test rows are training rows too"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_to_rows_without_prompts_are_refused(small_base: Path, tmp_path: Path):
    rows = [{"text": f"A {word} ran to the {other}."} for word in "abcd" for other in "efgh"]
    path = write_study(tmp_path, small_base, measures=["exact_match"])
    write_lines(tmp_path / "train.jsonl", rows[:10])
    write_lines(tmp_path / "valid.jsonl", rows[10:13])
    write_lines(tmp_path / "test.jsonl", rows[13:])
    with pytest.raises(DataError, match="no row has a prompt and an answer, which exact_match"):
        run(path, tmp_path / "out")


@pytest.mark.parametrize("name", ("test", "before"))
def test_a_missing_file_is_named_with_its_line(small_base: Path, tmp_path: Path, name: str):
    path = write_study(tmp_path, small_base)
    (tmp_path / f"{name}.jsonl").unlink()
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if name + ":" in text)
    with pytest.raises(ConfigError, match=f"study.yaml:{line}: {name} is .*no such file"):
        run(path, tmp_path / "out")


def test_a_busy_machine_is_noticed(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fix_costs(monkeypatch)
    monkeypatch.setattr(runner, "others_running", lambda: 1.4)
    path = write_study(tmp_path, small_base, seeds=[0], rates=None)
    result = run(path, tmp_path / "out")
    assert [n for n in result.notices if n.startswith("1.4 threads of other programs")]
