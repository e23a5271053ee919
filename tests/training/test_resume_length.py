"""A resumed run may be longer; flags and machines that change its numbers are refused or named."""

import pytest

import lorica
from lorica.errors import ConfigError
from lorica.formats import commit
from lorica.recipe.versions import versions
from lorica.training.checkpoint import steps
from tests.training.rows import adapter, same, settings, tiny_base
from tests.training.run_edits import edited_copy, nothing


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_can_be_longer(tmp_path, schedule):
    base = tiny_base(tmp_path / "base")
    plain = {"schedule": schedule, "warmup_ratio": 0.0}
    done = lorica.train(**settings(base, tmp_path, max_steps=4, **plain), show=False)
    longer = lorica.train(resume=done.folder, max_steps=6, save_steps=5, show=False)
    assert longer.figures["steps"] == 6
    assert any("begun for 4 steps and now ends after 6" in line for line in longer.notices)
    assert "max_steps: 6" in (done.folder / "config.yaml").read_text()
    assert steps(done.folder / "checkpoints")[-1].name == "step-00000006"
    whole = settings(base, tmp_path, max_steps=6, output=str(tmp_path / "whole"), **plain)
    unbroken = adapter(lorica.train(**whole, show=False).folder)
    assert same(adapter(longer.folder), unbroken) == (schedule == "constant")
    again = lorica.train(resume=done.folder, show=False)  # its settings are those it was given
    assert same(adapter(again.folder), adapter(longer.folder))


def test_a_schedule_of_a_method_cannot_be_longer(tmp_path):
    base = tiny_base(tmp_path / "base")
    method = {"name": "adalora", "r": 2}
    done = lorica.train(**settings(base, tmp_path, max_steps=4, method=method), show=False)
    with pytest.raises(ConfigError, match="schedule of adalora was made for 4 steps"):
        lorica.train(resume=done.folder, max_steps=6, show=False)
    before = commit.digest(done.folder / "config.yaml")
    assert "max_steps: 4" in (done.folder / "config.yaml").read_text()
    assert commit.digest(done.folder / "config.yaml") == before


def test_flags_that_reach_the_adapter_are_refused_before_anything_is_read(cut, tmp_path):
    run = edited_copy(cut[0], tmp_path / "copy", nothing)
    with pytest.raises(ConfigError, match="keeps its settings") as caught:
        lorica.train(resume=run, learning_rate=1.0, seed=3, show=False)
    assert "learning_rate" in str(caught.value) and "seed" in str(caught.value)


def test_another_machine_or_library_is_a_notice(cut, tmp_path, monkeypatch):
    run = edited_copy(cut[0], tmp_path / "copy", nothing)
    other = {"device": "cpu (none)", "threads": "7"}
    monkeypatch.setattr("lorica.training.resume.machine", lambda device: other)
    monkeypatch.setattr("lorica.training.resume.versions", lambda: {**versions(), "torch": "9"})
    result = lorica.train(resume=run, show=False)
    (line,) = [line for line in result.notices if "may round sums differently" in line]
    assert "threads" in line and "torch" in line
