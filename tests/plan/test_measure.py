"""Three measured steps, scaled to the run."""

import json
import subprocess
from pathlib import Path

import pytest

from lorica.errors import DataError, TrainingError
from lorica.plan import measure
from lorica.training.config import read

ANSWER = {
    "start": {"wall": 10.0, "process": 6.0},
    "first": {"wall": 3.0, "process": 2.0},
    "steps": [
        {"wall": 1.0, "process": 0.5, "tokens": 100},
        {"wall": 2.0, "process": 1.0, "tokens": 200},
        {"wall": 3.0, "process": 1.5, "tokens": 300},
    ],
    "mean_tokens": 150.0,
    "evaluation": {"wall": 4.0, "process": 2.0},
    "evaluations": 2,
    "total": 11,
    "checkpoint": {"wall": 0.5, "process": 0.25},
    "checkpoints": 4,
    "peak": 123,
}


def test_steps_are_scaled_to_the_mean_of_the_run():
    measured = measure.Measured.from_answer(ANSWER)
    assert measured.step == pytest.approx(2.0 * 150 / 200)
    assert measured.step_span.expected == measured.step
    assert measured.run_span.expected == pytest.approx(10 + 3 + 10 * 1.5 + 2 * 4 + 4 * 0.5)
    assert measured.run_span.high == pytest.approx(1.15 * measured.run_span.expected)
    assert measured.peak_bytes == 123


def test_the_clock_of_the_process_can_be_read():
    assert measure.Measured.from_answer(ANSWER, "process").step == pytest.approx(0.75)


@pytest.fixture
def config(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Say {i}. ", "completion": f"{i} is said."} for i in range(40)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(None, {"base": "bundled", "data.path": str(rows), "output": str(tmp_path / "run")})


def answering(monkeypatch, status: int, out: str, err: str = "") -> None:
    def run(words, **options):
        assert "output" in json.loads(options["input"])
        return subprocess.CompletedProcess(words, status, out, err)

    monkeypatch.setattr(measure.subprocess, "run", run)


def test_an_error_of_the_run_comes_as_it_is(monkeypatch, config):
    error = {"error": "DataError", "what": "row 3 is empty.", "fix": "x", "facts": {"file": "t"}}
    answering(monkeypatch, 0, json.dumps(error))
    with pytest.raises(DataError, match="row 3 is empty") as caught:
        measure.measure(config)
    assert caught.value.facts == {"file": "t"}


@pytest.mark.parametrize(
    ("status", "words"), [(-9, "signal 9.*too much memory"), (1, "status 1"), (0, "status 0")]
)
def test_a_process_without_an_answer_says_how_it_ended(monkeypatch, config, status, words):
    answering(monkeypatch, status, "", "Traceback\nKeyError: 'x'\n")
    with pytest.raises(TrainingError, match=f"(?s){words}.*KeyError"):
        measure.measure(config)


@pytest.mark.slow
def test_a_run_is_measured_and_leaves_nothing(config):
    answer = measure.probe(config)
    assert len(answer["steps"]) == 3
    assert answer["total"] == 15
    assert answer["mean_tokens"] > 8
    measured = measure.Measured.from_answer(answer)
    assert 0 < measured.step < measured.start < measured.run_span.expected
    assert not Path(config.output).exists()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_of_few_steps_is_measured_on_those_it_has(config, steps):
    short = config.model_copy(update={"max_steps": steps, "epochs": None})
    answer = measure.probe(short)
    assert len(answer["steps"]) == max(steps - 1, 1)
    assert answer["total"] == steps


@pytest.mark.slow
def test_what_the_run_refuses_is_refused(config):
    broken = config.model_copy(update={"data": config.data.model_copy(update={"path": "no.jsonl"})})
    with pytest.raises(DataError, match=r"no\.jsonl"):
        measure.probe(broken)
