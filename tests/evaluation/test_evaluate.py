"""`evaluate`: metrics, refusals, printed tables."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

import lorica
from lorica.base.load import load as load_base
from lorica.data.config import DataConfig
from lorica.data.example import Example
from lorica.data.load import load_data
from lorica.errors import BaseError, ConfigError, DataError, FileError, TrainingError
from lorica.evaluation.evaluate import evaluate
from lorica.evaluation.loss import Scores, score
from lorica.evaluation.measure import Measure, Report, evaluate_loaded, token_measures
from lorica.evaluation.stats import Interval
from lorica.evaluation.tables import show_report
from lorica.formats.attach import load as load_adapter
from lorica.formats.save import save
from lorica.generation.generate import generate
from tests.laws.bases import move

NAMES = ["Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy"]


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(str(small_base))


@pytest.fixture(scope="module")
def adapter(small_base, tmp_path_factory):
    """A LoRA with random weights, in PEFT's layout and without a manifest."""
    loaded = load_base(str(small_base))
    lorica.adapt(loaded.model, lorica.Lora(r=4))
    move(loaded.model, size=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    save(loaded.model, folder / "lora", base_path=str(small_base))
    (folder / "lora/manifest.json").unlink()
    return folder / "lora"


@pytest.fixture
def rows(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


def prompts(count=24):
    return [f"{NAMES[i % 8]} had {i} big red balls. {NAMES[i % 8]}" for i in range(count)]


def test_an_adapter_is_compared_with_its_base(base, adapter, small_base, rows):
    """The base's own answers are the references of two rows in three: it is right there."""
    texts = generate(base, prompts(), max_new_tokens=12).texts
    references = [text if i % 3 else " and a dog" for i, text in enumerate(texts)]
    pairs = zip(prompts(), references, strict=True)
    path = rows([{"prompt": p, "completion": c} for p, c in pairs])
    report = evaluate(adapter, path, base=str(small_base), max_new_tokens=12)
    assert report.rows == 24
    match = report["exact_match"]
    assert match.base.value == pytest.approx(16 / 24)
    assert match.adapter.value == 0
    assert match.difference.value == pytest.approx(-16 / 24)
    assert match.verdict == "worse"
    assert match.base.low < 16 / 24 < match.base.high
    loss, perplexity = report["loss"], report["perplexity"]
    assert loss.base.value < loss.adapter.value
    assert loss.verdict == perplexity.verdict == report["token_accuracy"].verdict == "worse"
    assert perplexity.base.value == pytest.approx(math.exp(loss.base.value))
    assert loss.difference.value == pytest.approx(loss.adapter.value - loss.base.value)
    assert [s.where for s in report.samples] == [f"rows.jsonl:{n}" for n in (1, 7, 13, 19)]
    assert report.samples[1].wanted != report.samples[1].adapter
    assert any("cannot be verified" in notice for notice in report.notices)


def test_losses_are_those_of_scoring_and_of_the_base_alone(base, adapter, small_base, rows):
    path = rows([{"prompt": p, "completion": " and a dog ran."} for p in prompts()])
    both = evaluate(adapter, path, base=str(small_base), exact_match=False)
    alone = evaluate(str(small_base), path, exact_match=False)
    assert [m.name for m in both.measures] == ["loss", "perplexity", "token_accuracy"]
    assert [m.base for m in alone.measures] == [m.base for m in both.measures]
    assert all(m.adapter is m.difference is m.verdict is None for m in alone.measures)
    adapted = load_base(str(small_base))
    load_adapter(adapted.model, adapter)
    config = DataConfig.model_validate({"path": path, "validation": 0})
    data = load_data(config, adapted.tokenizer, seed=0, max_length=512)
    assert both["loss"].adapter.value == pytest.approx(score(adapted.model, data.train).loss)
    assert both.tokens == score(adapted.model, data.train).tokens.sum()


def test_an_adapter_that_does_nothing_is_refused(small_base, rows, tmp_path):
    model = load_base(str(small_base)).model
    lorica.adapt(model, lorica.Lora(r=2))
    save(model, tmp_path / "fresh", base_path=str(small_base))
    path = rows([{"text": p} for p in prompts(10)])
    with pytest.raises(TrainingError, match="the adapter does nothing"):
        evaluate(tmp_path / "fresh", path)


def test_an_adapter_that_acts_on_the_last_row_only_is_measured(small_base):
    """One embedding row is trained, and the head is not tied to it: other rows do not move."""
    base = load_base(str(small_base))
    base.model.lm_head.weight = torch.nn.Parameter(base.model.lm_head.weight.clone())
    lorica.adapt(base.model, lorica.Lora(r=2), trainable_token_indices=[300])
    changed = [p for name, p in base.model.named_parameters() if name.endswith("default.rows")]
    with torch.no_grad():
        changed[0] += 1.0
    texts = [[1, *range(10 + i, 20 + i)] for i in range(9)]
    unmoved = [Example(ids, [False] + [True] * 10, f"row:{i}") for i, ids in enumerate(texts)]
    moved = Example([1, 300, 30], [False, True, True], "row:last")
    report = evaluate_loaded(base, [*unmoved, moved])
    assert report["loss"].difference.value != 0
    with pytest.raises(TrainingError, match="on every row"):
        evaluate_loaded(base, unmoved)


@pytest.mark.parametrize("wide", [0.1, 1.0, 5.0])
def test_loss_and_perplexity_have_the_same_verdict(wide):
    """Also where rows differ widely."""
    draw = np.random.default_rng(0)
    tokens = np.full(20, 30)
    losses = 4 + draw.normal(0, wide, 20).clip(-3.5, 3.5)
    better = losses - 1 - draw.normal(0, 0.5, 20).clip(-0.9, 0.9)
    scores = [
        Scores(nll * tokens, tokens, tokens // 2, np.zeros((20, 0), np.float32))
        for nll in (losses, better)
    ]
    loss, perplexity, _ = token_measures(scores)
    assert loss.verdict == perplexity.verdict == "better"
    apart = perplexity.adapter.value - perplexity.base.value
    assert perplexity.difference.value == pytest.approx(apart)
    assert perplexity.difference.low < apart < perplexity.difference.high < 0


def test_samples_json_and_the_printed_table(adapter, small_base, rows):
    path = rows([{"prompt": p, "completion": " and ran."} for p in prompts(6)])
    report = evaluate(adapter, path, base=str(small_base))
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["measures"]["exact_match"]["base"]["value"] == 0
    assert plain["measures"]["loss"]["verdict"] == report["loss"].verdict
    assert plain["examples"][0]["wanted"] == "and ran."
    assert plain["rows"] == 6
    out = io.StringIO()
    show_report(report, Console(file=out, width=100))
    text = out.getvalue()
    for word in ("exact match", "perplexity", "reference", "rows.jsonl:1", "few rows (6", "points"):
        assert word in text
    assert all(notice in text for notice in report.notices)


def test_large_values_and_long_verdicts_fit_80_columns():
    base, adapter = Interval(42230.3, 7665.5, 322175.5), Interval(4974.6, 1614.2, 18198.9)
    difference = Interval(-37255.7, -99715.9, 5883.0)
    out = io.StringIO()
    measures = [Measure("perplexity", 4, "lower", base, adapter, difference)]
    show_report(Report(measures, 4, 20), Console(file=out, width=80))
    text = out.getvalue()
    assert "perplexity" in text and "[-99,716, +5,883]" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_row_has_no_interval_and_shows_no_difference(adapter, small_base, rows):
    path = rows([{"prompt": "Tom", "completion": " ran."}])
    report = evaluate(adapter, path, base=str(small_base))
    assert report["loss"].verdict == "no difference shown"
    assert report.as_dict()["measures"]["loss"]["base"]["low"] is None
    out = io.StringIO()
    show_report(report, Console(file=out, width=100))
    assert "[?, ?]" in out.getvalue()


def test_plain_text_is_split_and_has_no_exact_match(base, small_base, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Tom and Lily went to the park to play with the big dog. " * 20)
    tokens = len(base.tokenizer(path.read_text())["input_ids"]) + 1  # and EOS
    report = evaluate(str(small_base), {"path": str(path), "max_length": 64, "validation": 0.5})
    blocks = math.ceil(tokens / 64)
    assert (report.rows, report.tokens) == (blocks, tokens - blocks)
    assert [m.name for m in report.measures] == ["loss", "perplexity", "token_accuracy"]
    assert report["loss"].base.value > 0


def test_every_row_is_measured_whatever_the_validation_split(small_base, rows):
    path = rows([{"text": p} for p in prompts(12)])
    assert evaluate(str(small_base), {"path": path, "validation": 0.5}).rows == 12
    assert evaluate(str(small_base), DataConfig(path=path, validation=path), limit=5).rows == 5


def test_exact_match_leaves_out_rows_that_the_context_cuts(small_base, rows):
    long = "Tom and Lily went to the park to play with the big dog. " * 40
    path = rows([{"prompt": p, "completion": " ran."} for p in [*prompts(3), long]])
    report = evaluate(
        str(small_base), {"path": path, "overlong": "truncate", "completion_only": False}
    )
    assert report.rows == 4
    assert report["exact_match"].rows == 3
    assert any(
        "no answer is written for 1 row " in notice and "rows.jsonl:4" in notice
        for notice in report.notices
    )


def test_chat_rows_are_compared_without_their_end_of_turn(base, rows, monkeypatch):
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talking = load_base(base.path)
    talking.tokenizer.chat_template = template
    answer = generate(talking, ["Hello"], chat=True, max_new_tokens=9).texts[0]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    path = rows([{"messages": turns}] * 2)
    monkeypatch.setattr("lorica.formats.open_model.load_base", lambda *_, **__: talking)
    report = evaluate(base.path, path, max_new_tokens=9)
    assert report["exact_match"].base.value == 1
    assert report.samples[0].wanted == answer.strip()


def test_a_classifier_is_measured_by_its_own_classes(small_base, rows, tmp_path):
    base = load_base(str(small_base), labels=["sad", "glad"])  # not in the order of the alphabet
    lorica.adapt(base.model, lorica.Lora(r=2), modules_to_save=["score"], seed=0)
    for parameter in base.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save(base.model, tmp_path / "adapter", base_path=str(small_base), labels=base.labels)
    texts = prompts()
    predicted = []
    for text in texts:
        ids = torch.tensor([base.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            predicted.append(base.labels[base.model(input_ids=ids).logits.argmax().item()])
    report = evaluate(
        tmp_path / "adapter",
        rows([{"text": t, "label": g} for t, g in zip(texts, predicted, strict=True)]),
    )
    assert [m.name for m in report.measures] == ["loss", "accuracy", "macro_f1"]
    assert report["accuracy"].adapter.value == 1
    assert report["accuracy"].adapter.low < 1
    with pytest.raises(DataError, match="not those that the model knows"):
        evaluate(tmp_path / "adapter", rows([{"text": "a", "label": "odd"}]))
    with pytest.raises(DataError, match="without classes"):
        evaluate(tmp_path / "adapter", rows([{"text": "a"}]))
    with pytest.raises(DataError, match="is a language model"):
        labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
        evaluate(str(small_base), rows(labelled))
    alike = [{"text": texts[0], "label": name} for name in ("sad", "glad")]
    same = evaluate(tmp_path / "adapter", rows(alike * 4))
    (notice,) = (notice for notice in same.notices if "does not separate" in notice)
    assert f"predicts {predicted[0]} for all 8 rows" in notice
    assert not any("does not separate" in notice for notice in report.notices)
    lorica.merge(base.model)
    base.model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    alone = evaluate(
        str(tmp_path / "merged"),
        rows([{"text": t, "label": g} for t, g in zip(texts, predicted, strict=True)]),
    )
    assert alone["accuracy"].base.value == 1


def test_what_cannot_be_opened(adapter, small_base, rows, tmp_path, monkeypatch):
    path = rows([{"text": "Tom ran."}])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileError, match="does not exist"):
        evaluate("runs/demoo", path)
    with pytest.raises(BaseError):
        evaluate(str(tmp_path / "runs"), path)
    with pytest.raises(ConfigError, match="names another"):
        evaluate(str(small_base), path, base="bundled")
    with pytest.raises(ConfigError, match="settings are wrong"):
        evaluate(str(small_base), {"path": path, "limt": 3})
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(str(small_base), path, batch_size=0)
    with pytest.raises(DataError, match="there is no file"):
        evaluate(str(small_base), str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("better", "low", "high", "verdict"),
    [
        ("lower", -2.0, -1.0, "better"),
        ("lower", 1.0, 2.0, "worse"),
        ("higher", 1.0, 2.0, "better"),
        ("higher", -2.0, -1.0, "worse"),
        ("lower", -1.0, 1.0, "no difference shown"),
        ("higher", math.nan, math.nan, "no difference shown"),
    ],
)
def test_verdicts(better, low, high, verdict):
    zero = Interval(0.0, 0.0, 0.0)
    assert Measure("x", 9, better, zero, zero, Interval(0.0, low, high)).verdict == verdict


def test_the_same_seed_gives_the_same_report(adapter, small_base, rows):
    path = rows([{"prompt": p, "completion": " ran."} for p in prompts(5)])
    first, second = (evaluate(adapter, path, base=str(small_base)).as_dict() for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second
    assert np.isfinite(first["measures"]["loss"]["base"]["low"])
