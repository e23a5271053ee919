"""Reading an adapter folder needs no model; attaching what was read equals loading."""

import dataclasses
import json

import pytest
import torch

import lorica
from lorica import Lora
from lorica.core.targets import Targets
from lorica.errors import FileError
from lorica.formats.adapter_file import read
from lorica.formats.attach import attach
from tests.laws.bases import CASES, Stack, trained

STACK = CASES[0]


@pytest.fixture
def folder(tmp_path):
    return lorica.save(trained("lora", STACK), tmp_path / "adapter", base_path="owner/base")


def test_what_is_read(folder):
    file = read(folder)
    assert file.folder == folder and isinstance(file.spec.method, Lora)
    assert isinstance(file.spec.targets, Targets)
    assert file.base is not None and file.base.architecture == "Stack"
    assert (file.base_path, file.labels, file.prompt_format) == ("owner/base", None, None)
    assert file.task == "CAUSAL_LM"
    assert all(key.startswith("base_model.model.") for key in file.tensors)


def test_it_cannot_be_changed(folder):
    file = read(folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.spec = None  # type: ignore[misc]
    with pytest.raises(TypeError):
        file.tensors["x"] = torch.zeros(1)  # type: ignore[index]


def test_attaching_it_twice_gives_the_adapter_twice(folder):
    file, model = read(folder), Stack()
    assert attach(model, file, "first") == []
    first = STACK.run(model)
    assert attach(model, file, "second") == []
    assert torch.equal(STACK.run(model), first)
    assert torch.equal(first, STACK.run(trained("lora", STACK)))


def test_a_folder_of_pefts_names_its_base_and_task(folder):
    (folder / "manifest.json").unlink()
    file = read(folder)
    assert file.manifest is None and file.base is None
    assert (file.base_path, file.task) == ("owner/base", "CAUSAL_LM")
    assert file.layout is not None and file.layout.kind == "LORA"


def test_the_digest_is_of_the_adapter_and_not_of_its_folder(folder, tmp_path):
    again = lorica.save(trained("lora", STACK), tmp_path / "again", base_path="owner/base")
    assert read(again).digest == read(folder).digest
    other = lorica.save(trained("dora", STACK), tmp_path / "dora", base_path="owner/base")
    assert read(other).digest != read(folder).digest


def test_a_damaged_folder_is_refused_before_any_model_is_needed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"]["parameters"] = "many"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="base fingerprint") as error:
        read(folder)
    assert "copy the folder again" in str(error.value)
