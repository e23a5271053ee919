"""Tasks on what a model writes: measures, notices, refusals before anything runs."""

import json

import numpy as np
import pytest

import lorica
from lorica.base.load import load as load_base
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError
from lorica.evaluation import measure
from lorica.evaluation.evaluate import data_settings, evaluate
from lorica.evaluation.measure import evaluate_loaded
from lorica.evaluation.questions import question_set
from lorica.evaluation.score_model import score_model
from lorica.evaluation.task import tasks_named
from lorica.formats.save import save
from lorica.generation.generate import generate
from tests.laws.bases import move

PROMPTS = [f"Tom had {i} big red balls. Lily" for i in range(6)]


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(str(small_base))


@pytest.fixture(scope="module")
def answers(base):
    return generate(base, PROMPTS, max_new_tokens=8).texts


@pytest.fixture
def write(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


def pairs(references, **more):
    return [
        {"prompt": p, "completion": r, **more} for p, r in zip(PROMPTS, references, strict=True)
    ]


def examples_of(path, base):
    rows = load_data(data_settings(path, None), base.tokenizer, seed=0, max_length=512, texts=True)
    return rows.train


def test_tasks_are_measured_beside_the_loss(small_base, answers, write):
    path = write(pairs([*answers[:3], "a dog", "a cat", "a ball"]))
    report = evaluate(str(small_base), path, tasks=["bleu", "character_accuracy"], max_new_tokens=8)
    names = ["loss", "perplexity", "token_accuracy", "exact_match", "bleu", "character_accuracy"]
    assert [m.name for m in report.measures] == names
    assert report["exact_match"].base.value == 0.5
    assert 0 < report["bleu"].base.low < report["bleu"].base.value < report["bleu"].base.high
    assert report["character_accuracy"].base.value >= 0.5
    assert any("bleu: sacrebleu BLEU, nrefs:1" in notice for notice in report.notices)
    row = report.predictions[0]["base"]
    assert row["right"] and row["scores"]["character_accuracy"] == 1


def test_other_references_count_too(small_base, answers, write):
    path = write([row | {"references": [a]} for row, a in zip(pairs(["x"] * 6), answers)])  # noqa: B905
    report = evaluate(str(small_base), path, tasks=["rouge_l"], max_new_tokens=8)
    assert report["exact_match"].base.value == report["rouge_l"].base.value == 1


def test_an_adapter_gets_paired_differences(base, small_base, answers, write, tmp_path):
    adapted = load_base(str(small_base))
    lorica.adapt(adapted.model, lorica.Lora(r=4))
    move(adapted.model, size=0.2)
    save(adapted.model, tmp_path / "lora", base_path=str(small_base))
    path = write(pairs(answers))
    report = evaluate(tmp_path / "lora", path, tasks=["chrf"], max_new_tokens=8)
    chrf = report["chrf"]
    assert chrf.base.value == pytest.approx(100)
    assert chrf.verdict == "worse" and chrf.difference.high < 0
    assert chrf.difference.value == pytest.approx(chrf.adapter.value - 100)
    again = evaluate(tmp_path / "lora", path, tasks=["chrf"], max_new_tokens=8)
    assert again["chrf"] == chrf


def test_what_the_answers_lack_is_counted_for_each_model(small_base, write):
    report = evaluate(
        str(small_base), write(pairs(["#### 4"] * 6)), tasks=["json_valid", "numeric"]
    )
    (notice,) = (n for n in report.notices if n.startswith("numeric"))
    without = sum(f"{s['base']['scores']['numeric']:.0f}" == "0" for s in report.predictions)
    assert "answers without a number count as wrong" in notice and "of 6" in notice
    assert report["numeric"].base.value == 1 - without / 6


def test_rows_that_a_task_cannot_score_are_left_out(base, write):
    path = write(pairs(["4", "four", "5", "6", "7", "8"]))
    report = evaluate_loaded(
        base, examples_of(path, base), adapted=False, tasks=tasks_named(["numeric"])
    )
    assert report["numeric"].rows == 5 and report["exact_match"].rows == 6
    assert any("leaves out 1 row" in n and "rows.jsonl:2" in n for n in report.notices)
    assert report.predictions[1]["base"]["scores"]["numeric"] is None


def test_mistakes_end_before_a_model_runs(base, small_base, write, monkeypatch):
    monkeypatch.setattr(measure, "score_model", None)
    monkeypatch.setattr(measure, "check_adapter_acts", None)
    with pytest.raises(ConfigError, match="no task 'blue'"):
        evaluate("no such run", write([]), tasks=["blue"])
    with pytest.raises(DataError, match="task numeric: none of the references of 6") as caught:
        evaluate(str(small_base), write(pairs(["a dog"] * 6)), tasks=["numeric"])
    assert "rows.jsonl:1: 'a dog'" in str(caught.value)
    with pytest.raises(DataError, match="no row has a prompt and an answer"):
        evaluate(str(small_base), write([{"text": "Tom ran."}]), tasks=["bleu"])


def test_a_classifier_has_no_tasks(small_base, write):
    base = load_base(str(small_base), labels=["sad", "glad"])
    path = write([{"text": "a", "label": "sad"}, {"text": "b", "label": "glad"}])
    data = load_data(
        data_settings(path, None), base.tokenizer, seed=0, max_length=512, labels=base.labels
    )
    tasks = tasks_named(["accuracy", "f1"])
    scores = score_model(base, data.train, question_set(base, []), tasks)
    report = evaluate_loaded(base, data.train, adapted=False)
    assert list(scores.measures) == ["loss", "accuracy", "f1"]
    assert scores.measures["accuracy"].value == report["accuracy"].base.value
    assert scores.measures["f1"].value == pytest.approx(report["macro_f1"].base.value)


def test_a_model_is_scored_as_it_is(base, answers, write):
    """What a study reads: the mean of the rows is the value, and the report has the same."""
    examples = examples_of(write(pairs([*answers[:4], "a", "b"])), base)
    tasks = tasks_named(["exact_match", "bleu"])
    scores = score_model(base, examples, question_set(base, examples, 8), tasks)
    report = evaluate_loaded(base, examples, adapted=False, tasks=tasks, max_new_tokens=8)
    for name, own in scores.measures.items():
        assert own.value == pytest.approx(report[name].base.value)
        if own.statistics is None:
            assert np.average(own.rows, weights=own.weights) == pytest.approx(own.value)
        else:
            assert len(own.statistics) == len(own.rows) == 6
            assert float(tasks[name].combine(own.statistics.sum(0))) == pytest.approx(own.value)
    assert scores.measures["loss"].better == "lower"
    assert scores.answers[:4] == [text.strip() for text in answers[:4]]
