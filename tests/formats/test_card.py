"""The model card beside an adapter: valid front matter, what is known, and a person's own text."""

import json

import pytest
import yaml

import lorica
from lorica.base.load import load
from lorica.formats.adapter_folder import CARD
from lorica.formats.card import MARK
from tests.base.classifiers import model, save


def front_matter(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture
def base(tmp_path):
    return load(save(tmp_path / "base | <b>", model("llama")), labels=["a|b", "c\n: d"])


def test_a_card_is_valid_whatever_its_names_hold(base, tmp_path):
    lorica.adapt(base.model, lorica.Lora(r=2), modules_to_save=base.head.whole)
    lorica.save(base.model, tmp_path / "a", base_path=base.path, labels=base.labels)
    front, body = front_matter((tmp_path / "a" / CARD).read_text())
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "text-classification"
    assert front["tags"] == ["lorica", "lora"]
    assert "base_model" not in front  # a local folder is no model of the hub
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert "<b>" not in body
    assert "num_labels=2" in body


def test_a_base_of_the_hub_is_named_in_the_front_matter(base, tmp_path):
    lorica.adapt(base.model, lorica.Lora(r=2))
    lorica.save(base.model, tmp_path / "a", base_path="owner/some-model")
    front, _ = front_matter((tmp_path / "a" / CARD).read_text())
    assert front["base_model"] == "owner/some-model"
    assert front["base_model_relation"] == "adapter"
    assert front["pipeline_tag"] == "text-classification"


def test_an_adapter_that_peft_does_not_read_says_so(base, tmp_path):
    lorica.adapt(base.model, lorica.method("mora", r=4))
    lorica.save(base.model, tmp_path / "a", base_path=base.path)
    text = (tmp_path / "a" / CARD).read_text()
    assert front_matter(text)[0]["library_name"] == "lorica"
    assert "PeftModel" not in text


def test_a_card_that_a_person_has_taken_over_is_kept(base, tmp_path):
    lorica.adapt(base.model, lorica.Lora(r=2))
    folder = lorica.save(base.model, tmp_path / "a", base_path=base.path)
    first = (folder / CARD).read_text()
    (folder / CARD).write_text(first + "more\n")
    lorica.save(base.model, folder, base_path=base.path)
    assert (folder / CARD).read_text() == first
    own = first.replace(MARK, "My own text: é.")
    (folder / CARD).write_text(own)
    lorica.load(base.model, folder, name="b")  # what it says is no part of the adapter
    lorica.save(base.model, folder, base_path=base.path)
    assert (folder / CARD).read_text() == own


def test_a_run_tells_its_data_settings_and_figures(tmp_path):
    rows = tmp_path / "rows.jsonl"
    texts = [{"prompt": f"the cat {i}", "completion": " sat"} for i in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    result = lorica.train(
        base=save(tmp_path / "base", model("llama")),
        data=str(rows),
        max_steps=2,
        learning_rate=1e-3,
        output=str(tmp_path / "run"),
        show=False,
    )
    text = (tmp_path / "run/adapter" / CARD).read_text()
    for word in (
        "rows.jsonl, sha256",
        "11 trained on, 1 held out",
        "learning rate 0.001",
        f"{result.figures['train_loss']:.4f}",
        "before",
        "generate PATH",
    ):
        assert word in text
    page = result._repr_html_()
    assert "held out loss" in page
    assert str(tmp_path / "run") in page
