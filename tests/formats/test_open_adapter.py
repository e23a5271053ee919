"""An adapter folder opens as a ready model: its base, its tokenizer, itself active."""

import json
import shutil

import pytest
import torch

import lorica
from lorica import Lora
from lorica.base.load import load
from lorica.errors import BaseError, FileError
from lorica.formats.adapter_folder import adapter_folder
from lorica.formats.open_adapter import open_adapter
from tests.laws.bases import IDS, Stack, move


@pytest.fixture
def saved(story_base, tmp_path):
    base = load(str(story_base))
    move(lorica.adapt(base.model, Lora()))
    path = lorica.save(base.model, tmp_path / "adapter", tokenizer=base.tokenizer)
    return base.model(IDS).logits, path


def test_the_base_is_found_where_the_manifest_says(saved, story_base):
    want, path = saved
    base = open_adapter(path)
    assert torch.equal(base.model(IDS).logits, want)
    assert base.notices == []
    assert base.path == str(story_base)
    assert base.tokenizer.get_vocab()


def test_the_base_may_have_moved(saved, story_base, tmp_path):
    want, path = saved
    elsewhere = shutil.copytree(story_base, tmp_path / "elsewhere")
    assert torch.equal(open_adapter(path, base=str(elsewhere)).model(IDS).logits, want)
    note = json.loads((path / "manifest.json").read_text())
    note["base"]["path"] = "/nowhere/any/more"
    (path / "manifest.json").write_text(json.dumps(note))
    with pytest.raises(BaseError, match="/nowhere/any/more"):
        open_adapter(path)


def test_a_folder_of_peft_says_where_its_base_is(saved, story_base):
    want, path = saved
    (path / "manifest.json").unlink()
    base = open_adapter(path)
    assert torch.equal(base.model(IDS).logits, want)
    (line,) = base.notices
    assert "cannot be verified" in line


def test_an_adapter_that_names_no_base(tmp_path):
    path = lorica.save(lorica.adapt(Stack(), Lora()), tmp_path / "adapter")
    with pytest.raises(BaseError, match="does not name") as error:
        open_adapter(path)
    assert "--base" in (error.value.fix or "")


def test_a_classifier_comes_back_with_its_classes(story_base, tmp_path):
    labels = ["good", "bad"]
    base = load(str(story_base), labels=labels)
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
    with pytest.raises(FileError, match="not an adapter folder"):
        open_adapter(tmp_path, base="/nowhere/at/all")


def classifier(story_base, tmp_path, n, **method):
    """A folder that PEFT wrote of a classifier of n classes, and what it gives."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    base = load(str(story_base), labels=[f"class {i}" for i in range(n)])
    prompt = method.pop("prompt", False)
    config = (
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
        if prompt
        else LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], **method)
    )
    model = move(get_peft_model(base.model, config))
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.filterwarnings("ignore")  # of peft's own, which are not ours to mend
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("prompt", [False, True])
def test_a_classifier_of_peft_says_how_many_classes_it_has(story_base, tmp_path, n, prompt):
    want = classifier(story_base, tmp_path, n, prompt=prompt)
    base = open_adapter(tmp_path, base=str(story_base))
    assert base.labels == [f"LABEL_{i}" for i in range(n)]
    torch.testing.assert_close(base.model(IDS).logits, want, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_head_with_one_output_gives_no_classes(story_base, tmp_path):
    classifier(story_base, tmp_path / "adapter", 1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "LABEL_0"}\n')
    for use in (lorica.predict, lorica.evaluate):
        with pytest.raises(FileError, match="one output"):
            use(tmp_path / "adapter", str(rows), base=str(story_base))


@pytest.mark.filterwarnings("ignore")
def test_the_names_of_classes_are_the_bases_where_it_has_as_many(story_base, tmp_path):
    from transformers import AutoConfig

    folder = shutil.copytree(story_base, tmp_path / "base")
    config = AutoConfig.from_pretrained(folder)
    config.id2label = {0: "no", 1: "yes", 2: "perhaps"}
    config.save_pretrained(folder)
    classifier(story_base, tmp_path / "adapter", 3)
    assert open_adapter(tmp_path / "adapter", base=str(folder)).labels == ["no", "yes", "perhaps"]


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_without_its_head_is_refused(story_base, tmp_path):
    from safetensors.torch import load_file, save_file

    classifier(story_base, tmp_path, 3)
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(file).items() if "score" not in k}, file)
    with pytest.raises(FileError, match="has no head") as error:
        open_adapter(tmp_path, base=str(story_base))
    assert "modules_to_save" in (error.value.fix or "")


def test_our_own_classifier_whose_classes_were_not_named(story_base, tmp_path):
    base = load(str(story_base), labels=["a", "b", "c"])
    move(lorica.adapt(base.model, Lora(), modules_to_save=["score"]))
    path = lorica.save(base.model, tmp_path / "adapter")
    assert open_adapter(path).labels == ["a", "b", "c"]
    note = json.loads((path / "manifest.json").read_text())
    note["labels"] = None  # as an earlier release wrote it
    (path / "manifest.json").write_text(json.dumps(note))
    again = open_adapter(path)
    assert again.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert torch.equal(again.model(IDS).logits, base.model(IDS).logits)


def test_another_task_is_refused(saved):
    _, path = saved
    (path / "manifest.json").unlink()
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": "TOKEN_CLS"}))
    with pytest.raises(FileError, match="trained for TOKEN_CLS"):
        open_adapter(path)
