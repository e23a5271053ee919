"""`lorica predict`: classes and probabilities of new rows; and the class metrics of eval."""

import io
import json

import numpy as np
import pytest
import torch
import transformers as tf
from rich.console import Console

import lorica
from lorica.cli import run
from lorica.core.draws import drawing
from lorica.errors import BaseError, ConfigError, DataError
from lorica.evaluation.classes import Classes, confusion, macro_f1
from lorica.evaluation.tables import show_report
from lorica.formats.open_adapter import open_adapter
from tests.base.classifiers import BERT, save
from tests.marks import slow_but

NAMES = ["zebra", "ant", "owl"]
TEXTS = ["the cat sat", "a dog ran very", "not good", "the film was bad", "a cat", "good dog"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a classifier with three classes, and its rows."""
    folder = tmp_path_factory.mktemp("classes")
    with drawing(2):
        config = tf.BertConfig(**BERT, id2label=dict(enumerate(NAMES)))
        base = save(folder / "base", tf.BertForSequenceClassification(config))
    rows = folder / "rows.jsonl"
    labelled = [{"text": TEXTS[i % 6], "label": NAMES[i % 3]} for i in range(24)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    lorica.train(
        base=base,
        data={"path": str(rows), "validation": 0.25},
        max_steps=4,
        learning_rate=1e-2,
        output=str(folder / "run"),
        show=False,
    )
    return folder


def new_rows(folder, rows):
    path = folder / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_predictions_are_the_softmax_of_the_model(trained, tmp_path):
    from lorica.formats.open_adapter import open_adapter

    predictions = lorica.predict(trained / "run", new_rows(tmp_path, [{"text": t} for t in TEXTS]))
    opened = open_adapter(trained / "run")
    assert predictions.labels == NAMES
    for text, row in zip(TEXTS, predictions.rows, strict=True):
        ids = torch.tensor([opened.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            want = opened.model(input_ids=ids).logits.softmax(-1)[0]
        assert row["text"] == text
        assert row["label"] == NAMES[want.argmax()]
        assert row["probability"] == pytest.approx(want.max().item(), abs=1e-5)
        assert list(row["probabilities"].values()) == pytest.approx(want.tolist(), abs=1e-5)
        assert "wanted" not in row


def test_labels_of_new_rows_are_copied_and_not_used(trained, tmp_path):
    path = new_rows(
        tmp_path,
        [
            {"text": "a cat", "label": "unheard of"},
            {"text": "a dog"},
            {"text": "a film", "label": None},
        ],
    )
    rows = lorica.predict(trained / "run", path).rows
    assert [row.get("wanted") for row in rows] == ["unheard of", None, None]


def test_the_command_writes_every_row_and_overwrites_no_file(trained, tmp_path, capsys):
    path = new_rows(tmp_path, [{"review": t} for t in TEXTS])
    output = tmp_path / "out.jsonl"
    words = ["predict", str(trained / "run"), "--data", path, "--data.columns", "{text: review}"]
    assert run([*words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "6 rows" in printed
    assert all(text in printed for text in TEXTS)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in written] == TEXTS
    assert run([*words, "--output", str(output)]) == 2
    assert run([*words, "--output", path]) == 2
    assert json.loads((tmp_path / "new.jsonl").read_text().splitlines()[0])["review"] == TEXTS[0]
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == written


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"review": "a"}], "no column text"),
        ([{"text": "a"}, {"text": None}, {"text": 7}], "2 of 3 rows"),
        ([{"text": "cat " * 40}], "longer than"),
    ],
)
def test_unusable_rows_are_named(rows, fault, trained, tmp_path):
    with pytest.raises(DataError, match=fault):
        lorica.predict(trained / "run", new_rows(tmp_path, rows))


def test_a_text_file_is_refused(trained, tmp_path):
    (tmp_path / "new.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="is one text"):
        lorica.predict(trained / "run", str(tmp_path / "new.txt"))


def test_a_language_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="language model") as error:
        lorica.predict("bundled", new_rows(tmp_path, [{"text": "a"}]))
    assert "lorica generate" in str(error.value)


def test_long_texts_are_cut_by_the_tokenizer_if_asked(trained, tmp_path):
    path = new_rows(tmp_path, [{"text": "cat " * 40}, {"text": "a cat"}])
    predictions = lorica.predict(trained / "run", {"path": path, "overlong": "truncate"})
    assert len(predictions.rows) == 2
    assert any("lose their ends" in line for line in predictions.notices)


# Class metrics of eval


def f1(hits, wrongly, missed):
    return 2 * hits / (2 * hits + wrongly + missed)


def test_f1_and_confusion_by_definition():
    actual = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 1, 0, 1, 1, 0])
    table = confusion(actual, predicted, 4)
    assert table.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    classes = Classes(["a", "b", "c", "d"], [table])
    values = [f1(2, 1, 1), f1(2, 1, 0), f1(0, 0, 1)]
    for i, value in enumerate(values):
        interval = classes.f1(0, i)
        assert interval.value == pytest.approx(value)
        assert interval.low <= value <= interval.high
    assert classes.f1(0, 3) is None
    (macro,) = macro_f1(actual, [predicted], 4)
    assert macro.value == pytest.approx(np.mean(values))


def test_the_jackknife_of_macro_f1_by_definition():
    """The standard error from F1 computed anew without each row."""
    generator = np.random.default_rng(0)
    actual, predicted = generator.integers(0, 3, 30), generator.integers(0, 3, 30)
    (interval,) = macro_f1(actual, [predicted], 3)

    def value(keep):
        a, p = actual[keep], predicted[keep]
        return np.mean(
            [
                f1(
                    ((a == k) & (p == k)).sum(),
                    ((a != k) & (p == k)).sum(),
                    ((a == k) & (p != k)).sum(),
                )
                for k in range(3)
            ]
        )

    rows = np.arange(30)
    without = np.array([value(rows != i) for i in rows])
    error = np.sqrt(((value(rows >= 0) - without) ** 2).sum() * 29 / 30)
    assert interval.high - interval.value == pytest.approx(2.04523 * error, rel=1e-4)


def test_eval_prints_f1_and_confusion_and_records_every_row(trained, capsys):
    assert run(["eval", str(trained / "run"), "--data", str(trained / "rows.jsonl")]) == 0
    printed = capsys.readouterr().out
    for word in ("macro f1", "F1 of class", "as zebra", "adapter: class"):
        assert word in printed
    results = json.loads((trained / "run/results.json").read_text())["evaluation"]
    assert results["classes"]["labels"] == NAMES
    assert np.sum(results["classes"]["confusion"]["adapter"]) == 24
    assert results["classes"]["f1"]["ant"]["rows"] == 8
    lines = (trained / "run/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    accuracy = results["measures"]["accuracy"]
    for system in ("base", "adapter"):
        right = [row[system]["label"] == row["wanted"] for row in rows]
        assert [row[system]["right"] for row in rows] == right
        assert np.mean(right) == pytest.approx(accuracy[system]["value"])
        losses = [row[system]["loss"] for row in rows]
        loss = results["measures"]["loss"][system]["value"]
        assert np.mean(losses) == pytest.approx(loss, abs=1e-5)


def test_accuracy_is_logged_during_training(trained):
    lines = (trained / "run/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    accuracies = [event["accuracy"] for event in events if event["event"] == "eval"]
    assert accuracies
    assert all(0 <= share <= 1 for share in accuracies)
    results = json.loads((trained / "run/results.json").read_text())
    assert results["held_out_accuracy"] == {"before": accuracies[0], "after": accuracies[-1]}


def test_for_many_classes_the_worst_confusions_are_printed():
    labels = [f"class{i}" for i in range(15)]
    table = np.diag(np.full(15, 3))
    table[2, 7] = 5
    report = lorica.evaluation.measure.Report([], 50, 50, classes=Classes(labels, [table]))
    out = io.StringIO()
    show_report(report, Console(file=out, width=120))
    assert "5 rows of class2 predicted as class7" in out.getvalue()


def test_a_report_is_html_in_a_notebook(trained):
    page = lorica.evaluate(trained / "run", str(trained / "rows.jsonl"))._repr_html_()
    for word in ("<table>", "macro f1", "difference", "F1 of class", "zebra", "95 %"):
        assert word in page
    out = lorica.evaluation.measure.Report([], 1, 1, path="<script>", data="a&b")._repr_html_()
    assert "<script>" not in out
    assert "a&amp;b" in out


NO_CLASSES = {
    "regression": ({"problem_type": "regression"}, "problem_type regression"),
    "several labels": ({"problem_type": "multi_label_classification"}, "problem_type multi_label"),
    "one output": ({"id2label": {"0": "score"}, "num_labels": 1}, "1 output"),
    "two alike": ({"id2label": {"0": "owl", "1": "ant", "2": "owl"}}, "the name owl"),
    "alike but for blanks": ({"id2label": {"0": "an owl", "1": "ant", "2": "an  owl"}}, "an owl"),
    "no name": ({"id2label": {"0": "", "1": "ant", "2": "owl"}}, "has no name"),
    "a gap": ({"id2label": {"0": "zebra", "1": "ant", "5": "owl"}}, "no name for output 2"),
    "numbered from 1": ({"id2label": {"1": "zebra", "2": "ant", "3": "owl"}}, "for output 0"),
}


@pytest.fixture(params=NO_CLASSES)
def no_classes(request, trained, tmp_path):
    """(a base whose own head has no class probabilities, words of the refusal)."""
    changes, words = NO_CLASSES[request.param]
    config = tf.BertConfig(**BERT, id2label=dict(enumerate(NAMES[: changes.get("num_labels", 3)])))
    base = save(tmp_path / "base", tf.BertForSequenceClassification(config))
    file = tmp_path / "base/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return base, words


def test_a_base_whose_head_has_no_classes_is_refused_by_name(no_classes, tmp_path):
    base, words = no_classes
    rows = new_rows(tmp_path, [{"text": t, "label": "ant"} for t in TEXTS])
    for use in (lorica.predict, lorica.evaluate):
        with pytest.raises(BaseError, match=words) as caught:
            use(base, rows)
        assert base in str(caught.value)


@pytest.mark.parametrize("no_classes", slow_but(("regression", "a gap"), NO_CLASSES), indirect=True)
def test_training_gives_a_base_without_classes_a_head_that_has_them(no_classes, trained, tmp_path):
    base, words = no_classes
    run = lorica.train(
        base=base,
        data={"path": str(trained / "rows.jsonl")},
        max_steps=2,
        learning_rate=1e-2,
        output=str(tmp_path / "run"),
        show=False,
    )
    (notice,) = (line for line in run.notices if words in line)
    assert "trained and saved whole" in notice
    predictions = lorica.predict(tmp_path / "run", new_rows(tmp_path, [{"text": t} for t in TEXTS]))
    assert predictions.labels == sorted(NAMES)
    opened = open_adapter(tmp_path / "run")
    batch = {"input_ids": torch.tensor([[0, 6, 7, 2]]), "labels": torch.tensor([2])}
    out = opened.model(**batch)
    want = torch.nn.functional.cross_entropy(out.logits, batch["labels"])
    torch.testing.assert_close(out.loss, want)
    assert opened.model.config.problem_type in (None, "single_label_classification")
