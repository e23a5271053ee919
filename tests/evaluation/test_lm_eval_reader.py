"""Benchmarks of lm-eval: what is taken over, and what is refused.

lm-eval is no part of the development tools, as it brings scipy and more. Where it is installed, the
last test runs it on rows of its own.
"""

import json
from functools import partial
from importlib.util import find_spec

import pytest

from lorica.errors import ConfigError, DataError, MissingError
from lorica.evaluation.evaluate import evaluate
from lorica.evaluation.lm_eval_reader import _measure, _rows, split_tasks


def test_tasks_of_lm_eval_are_known_by_their_prefix():
    own, theirs = split_tasks("bleu, lm_eval:arc_easy,lm_eval:arc_easy")
    assert (own, theirs) == (["bleu"], ["arc_easy"])
    assert split_tasks(["chrf", "lm_eval:gsm8k"]) == (["chrf"], ["gsm8k"])


def sample(doc, **scores):
    filtered = {"filter": scores.pop("by", "none"), "metrics": list(scores)}
    return {"doc_id": doc, **filtered, **scores}


def test_scores_of_rows_are_taken_by_metric_and_filter():
    results = {
        "higher_is_better": {"t": {"acc": True, "cost": False}},
        "samples": {
            "t": [
                sample(1, acc=1.0, cost=2.5, text="no number"),
                sample(0, acc=0.0, cost=1.5),
                sample(0, acc=1.0, by="strict"),
            ]
        },
    }
    rows = _rows(results)
    assert rows == {
        "t acc": (True, {1: 1.0, 0: 0.0}),
        "t cost": (False, {1: 2.5, 0: 1.5}),
        "t acc strict": (True, {0: 1.0}),
    }
    with pytest.raises(DataError, match="no score for single rows"):
        _rows({"higher_is_better": {"t": {}}, "samples": {"t": [sample(0, ppl=(1, 2))]}})


def test_differences_are_paired_by_row():
    base = (True, {i: float(i % 2) for i in range(40)})
    adapter = (True, dict.fromkeys(reversed(range(40)), 1.0))
    measure = _measure("t acc", [base, adapter])
    assert (measure.rows, measure.unit, measure.verdict) == (40, "share", "better")
    assert measure.difference.value == 0.5
    lower = _measure("t cost", [(False, {i: i - 20.0 for i in range(40)})])
    assert (lower.better, lower.unit, lower.base.value) == ("lower", "score", -0.5)
    assert lower.base.low < -0.5 < lower.base.high


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_its_extra_is_named(small_base, tmp_path):
    with pytest.raises(MissingError, match="lm-eval") as caught:
        evaluate(str(small_base), str(tmp_path / "rows.jsonl"), tasks="lm_eval:arc_easy")
    assert 'pip install "lorica[lm_eval]"' in str(caught.value)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is no development tool")
@pytest.mark.filterwarnings("default")
def test_lm_eval_runs_on_the_loaded_model(small_base, tmp_path, monkeypatch):
    from lm_eval import evaluator, tasks

    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Tom {i}", "completion": " ran"}) + "\n" for i in range(8))
    )
    config = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": 0,
        "doc_to_choice": ["ran", "dog"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "own.yaml").write_text(json.dumps(config))  # JSON is YAML
    manager = partial(tasks.TaskManager, include_path=str(tmp_path))
    monkeypatch.setattr(tasks, "TaskManager", manager)
    monkeypatch.setattr(evaluator, "TaskManager", manager)
    report = evaluate(str(small_base), str(rows), exact_match=False, tasks="lm_eval:own")
    measure = report["own acc"]
    assert measure.rows == 8 and 0 <= measure.base.value <= 1
    assert any(notice.startswith("lm-eval 0.") for notice in report.notices)
    with pytest.raises(ConfigError, match="no task 'owm'") as caught:
        evaluate(str(small_base), str(rows), tasks="lm_eval:owm")
    assert "own" in str(caught.value)
