"""Sequence classification: the head is new, is trained, is saved, and comes back."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf

import lorica
from lorica.core.draws import drawing
from lorica.errors import DataError
from lorica.formats.open_adapter import open_adapter
from tests.base.classifiers import BERT, save
from tests.marks import slow_but


def reviews(path: Path, count: int = 48) -> Path:
    """Rows of two classes that differ in one word."""
    words = {"neg": ["a dull", "a weak", "a poor"], "pos": ["a fine", "a bright", "a great"]}
    rows = [
        {"text": f"{words[label][i % 3]} film of a dog and a ball", "label": label}
        for i in range(count // 2)
        for label in words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_classifier_learns_saves_and_reloads(small_base, tmp_path):
    data = reviews(tmp_path / "reviews.jsonl")
    result = lorica.train(
        base=str(small_base),
        data={"path": str(data), "validation": 0.25},
        learning_rate=5e-3,
        max_steps=12,
        output=str(tmp_path / "run"),
        show=False,
    )
    assert any("padded" in line for line in result.notices)
    assert any("score" in line for line in result.notices)
    first = open_adapter(result.folder)
    second = open_adapter(result.folder)
    assert first.labels == ["neg", "pos"]
    ids = torch.randint(0, 300, (2, 9))
    assert torch.equal(first.model(ids).logits, second.model(ids).logits)
    with lorica.use(first.model):
        bare = first.model(ids).logits
    assert not torch.allclose(bare, second.model(ids).logits)
    assert result.figures["train_loss"] < 0.72


def write(path: Path, labels: list) -> str:
    """Rows whose label tells which of two words stands in them."""
    rows = [
        {"text": ["the cat sat", "a dog ran"][i % 2], "label": labels[i % len(labels)]}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def base_of(folder: Path, names: list[str]) -> str:
    with drawing(2):
        config = tf.BertConfig(**BERT, id2label=dict(enumerate(names)))
        return save(folder, tf.BertForSequenceClassification(config))


def trained(base: str, rows: str, folder: Path, **changed):
    settings = {"max_steps": 1, "learning_rate": 1e-6, "validation": 0} | changed
    data = {"path": rows, "validation": settings.pop("validation")}
    return lorica.train(base=base, data=data, output=str(folder), show=False, **settings)


SAME = [["zebra", "ant"], ["Zebra", "ANT"], [0, 1], ["0 ", " 1"], [" zebra", "ant\t"]]
OTHERS = [
    (["neg", "pos"], ["neg", "pos"]),
    (["b", "a", "c"], ["a", "b", "c"]),
    ([10, 9], ["9", "10"]),
    (["Zebra", "zebra", "ant"], ["Zebra", "ant", "zebra"]),
    ([0, 1, 2], ["0", "1", "2"]),
    ([0, "zebra"], ["0", "zebra"]),
]


@pytest.mark.parametrize("labels", slow_but([SAME[0], SAME[3]], SAME))
def test_the_base_has_the_same_figures_alone_and_beside_its_run(labels, tmp_path):
    base = base_of(tmp_path / "base", ["zebra", "ant"])  # no alphabet's order
    rows = write(tmp_path / "rows.jsonl", labels)
    alone = lorica.evaluate(base, rows)
    result = trained(base, rows, tmp_path / "run")
    beside = lorica.evaluate(result.folder, rows)
    assert open_adapter(result.folder).labels == ["zebra", "ant"]
    for name in ("accuracy", "loss"):
        assert beside[name].base == alone[name].base
    assert not any("new, trained" in line for line in result.notices)
    plain = all(str(label).strip() in ("zebra", "ant") for label in labels)
    assert any("labels are read as" in line for line in result.notices) is not plain


@pytest.mark.parametrize(("labels", "classes"), slow_but([OTHERS[1], OTHERS[2]], OTHERS))
def test_other_classes_are_a_fresh_head_by_notice(labels, classes, tmp_path):
    base = base_of(tmp_path / "base", ["zebra", "ant"])
    rows = write(tmp_path / "rows.jsonl", labels)
    result = trained(base, rows, tmp_path / "run")
    assert open_adapter(result.folder).labels == classes
    assert any("not those of the rows" in line for line in result.notices)
    with pytest.raises(DataError, match="not those that the model knows"):
        lorica.evaluate(base, rows)


def test_two_classes_by_number_are_no_classes_of_a_base_with_five(tmp_path):
    base = base_of(tmp_path / "base", ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"])
    result = trained(base, write(tmp_path / "rows.jsonl", [0, 1]), tmp_path / "run")
    assert open_adapter(result.folder).labels == ["0", "1"]


def test_labels_that_differ_in_blanks_are_one_class(tmp_path):
    base = base_of(tmp_path / "base", ["x", "y", "z"])
    rows = write(tmp_path / "rows.jsonl", ["cat", "dog", "cat ", "\u00a0dog\n"])
    result = trained(base, rows, tmp_path / "run")
    assert open_adapter(result.folder).labels == ["cat", "dog"]
