"""An adapter folder opens as a ready model: its base, its tokenizer, itself active."""

import json
import shutil

import pytest
import torch

import lorica
from lorica import Lora
from lorica.base.load import load
from lorica.errors import BaseError, FileError
from lorica.formats.open import adapter_folder, open_adapter
from tests.laws.bases import IDS, Stack, move


@pytest.fixture
def saved(stories, tmp_path):
    base = load(str(stories))
    move(lorica.adapt(base.model, Lora()))
    path = lorica.save(base.model, tmp_path / "adapter", tokenizer=base.tokenizer)
    return base.model(IDS).logits, path


def test_the_base_is_found_where_the_manifest_says(saved, stories):
    want, path = saved
    base = open_adapter(path)
    assert torch.equal(base.model(IDS).logits, want)
    assert base.lines == []
    assert base.path == str(stories)
    assert base.tokenizer.get_vocab()


def test_the_base_may_have_moved(saved, stories, tmp_path):
    want, path = saved
    elsewhere = shutil.copytree(stories, tmp_path / "elsewhere")
    assert torch.equal(open_adapter(path, base=str(elsewhere)).model(IDS).logits, want)
    note = json.loads((path / "manifest.json").read_text())
    note["base"]["path"] = "/nowhere/any/more"
    (path / "manifest.json").write_text(json.dumps(note))
    with pytest.raises(BaseError, match="/nowhere/any/more"):
        open_adapter(path)


def test_a_folder_of_peft_says_where_its_base_is(saved, stories):
    want, path = saved
    (path / "manifest.json").unlink()
    base = open_adapter(path)
    assert torch.equal(base.model(IDS).logits, want)
    (line,) = base.lines
    assert "cannot be verified" in line


def test_an_adapter_that_names_no_base(tmp_path):
    path = lorica.save(lorica.adapt(Stack(), Lora()), tmp_path / "adapter")
    with pytest.raises(BaseError, match="does not say") as error:
        open_adapter(path)
    assert "--base" in (error.value.fix or "")


def test_a_classifier_comes_back_with_its_classes(stories, tmp_path):
    labels = ["good", "bad"]
    base = load(str(stories), labels=labels)
    move(lorica.adapt(base.model, Lora(), modules_to_save=["score"]))
    path = lorica.save(base.model, tmp_path / "adapter", labels=labels)
    again = open_adapter(path)
    assert again.labels == labels
    assert torch.equal(again.model(IDS).logits, base.model(IDS).logits)


def test_a_run_that_has_not_finished_says_how_to_go_on(tmp_path):
    for name in ("config.yaml", "events.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(FileError, match="not finished") as error:
        adapter_folder(tmp_path)
    assert "--resume" in (error.value.fix or "")
    (tmp_path / "adapter").mkdir()
    assert adapter_folder(tmp_path) == tmp_path / "adapter"


def test_no_adapter_is_an_error_before_any_base_is_loaded(tmp_path):
    with pytest.raises(FileError, match="no adapter folder"):
        open_adapter(tmp_path, base="/nowhere/at/all")
