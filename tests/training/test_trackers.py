"""Experiment trackers receive the metrics of a run, and a missing package is named."""

import importlib.util

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from lorica.errors import MissingError
from lorica.training.trackers import metrics, start_tracker

STEP = {"event": "step", "step": 3, "loss": 0.5, "lr": 1e-4}


class Recorder:
    """Stands for a tracker of accelerate."""

    def __init__(self, project, **options):
        self.project, self.options, self.calls = project, options, []
        Recorder.last = self

    def start(self):
        self.calls.append("start")

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_is_started_fed_and_finished(monkeypatch, tmp_path, name):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, Recorder)
    follow = start_tracker(name, tmp_path, {"seed": 0})
    for event in ({"event": "line", "text": "a notice"}, STEP, {"event": "end", "step": 3}):
        follow(event)
    assert Recorder.last.calls == ["start", (3, {"train/loss": 0.5, "train/lr": 1e-4}), "finish"]
    folders = [str(value) for value in Recorder.last.options.values()]
    assert str(tmp_path) in folders or tmp_path.name in folders


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(MissingError, match=name) as caught:
        start_tracker(name, tmp_path, {})
    assert f"lorica[{name}]" in str(caught.value)


def test_metrics_are_the_numbers_of_steps_and_evaluations():
    assert metrics(STEP) == {"train/loss": 0.5, "train/lr": 1e-4}
    assert metrics({"event": "eval", "step": 3, "loss": 1.0}) == {"eval/loss": 1.0}
    assert metrics({"event": "start", "step": 0, "total": 9}) == {}
