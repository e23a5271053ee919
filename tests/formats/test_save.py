"""What is saved: whole, readable by those who may, over nothing that is not ours."""

import os
import stat
from pathlib import Path

import pytest
import torch

import lorica
from lorica import Dora, Full, Lora
from lorica.core.adapter import Method
from lorica.core.bank import bank_of, spec_of
from lorica.errors import BaseError, ConfigError, LoricaError, ResourceError
from lorica.methods.hyperlora import Hyperlora
from lorica.methods.ia3 import Ia3
from lorica.methods.prefix_tuning import PrefixTuning
from lorica.methods.prompt_tuning import PromptTuning
from tests.laws.bases import CASES, Stack, move, small_llama, trained

STACK = CASES[0]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return lorica.save(trained("lora", STACK), tmp_path / "adapter")


def test_a_name_that_is_taken(folder):
    model = trained("lora", STACK)
    with pytest.raises(ConfigError, match="already attached"):
        lorica.load(model, folder)
    assert lorica.load(model, folder, name="other") == []


def test_each_adapter_of_a_model_is_saved_apart(tmp_path):
    model = trained("lora", STACK)
    one = STACK.run(model)
    move(lorica.adapt(model, Dora(r=2), name="second"), 5)
    two = STACK.run(model)
    for name, want in (("default", one), ("second", two)):
        fresh = Stack()
        lorica.load(fresh, lorica.save(model, tmp_path / name, name))
        assert torch.equal(STACK.run(fresh), want)


def test_settings_come_back(tmp_path):
    method = Lora(r=3, alpha=7, use_rslora=True, dropout=0.1, init="gaussian", loraplus_lr_ratio=4)
    model = lorica.adapt(Stack(), method, seed=11, target_modules=["up"], rank_pattern={"0.up": 2})
    fresh = Stack()
    lorica.load(fresh, lorica.save(model, tmp_path / "adapter"))
    assert spec_of(fresh, "default") == spec_of(model, "default")


def test_what_peft_has_no_place_for_is_not_said_to_be_pefts(tmp_path):
    path = lorica.save(move(lorica.adapt(Stack(), Full())), tmp_path / "adapter")
    assert sorted(p.name for p in path.iterdir()) == ["README.md", WEIGHTS, "manifest.json"]


def test_saving_again_gives_the_same_bytes(tmp_path):
    model = trained("lora", STACK)
    one, two = (lorica.save(model, tmp_path / name) for name in ("one", "two"))
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_files_obey_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = lorica.save(trained("lora", STACK), tmp_path / "adapter")
    finally:
        os.umask(old)
    assert {stat.S_IMODE(f.stat().st_mode) for f in path.iterdir()} == {0o640}
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_an_older_adapter_gives_way(folder):
    other = trained("dora", STACK, seed=4)
    assert lorica.save(other, folder) == folder
    fresh = Stack()
    lorica.load(fresh, folder)
    assert torch.equal(STACK.run(fresh), STACK.run(other))
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def foreign_file(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def foreign_file_beside_an_adapter(path: Path) -> None:
    lorica.save(trained("lora", STACK), path)
    (path / "thesis.tex").write_text("years of work")


def foreign_folder_beside_an_adapter(path: Path) -> None:
    lorica.save(trained("lora", STACK), path)
    (path / "checkpoint-500").mkdir()


@pytest.mark.parametrize(
    "there",
    [
        foreign_file,
        foreign_file_beside_an_adapter,
        foreign_folder_beside_an_adapter,
        lambda path: path.write_text("years of work"),
    ],
    ids=["folder", "beside an adapter", "folder beside an adapter", "file"],
)
def test_what_is_not_ours_is_never_replaced(there, tmp_path):
    path = tmp_path / "out"
    there(path)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(ResourceError, match="out"):
        lorica.save(trained("lora", STACK), path)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert lorica.load(Stack(), lorica.save(trained("lora", STACK), tmp_path / "out")) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        lorica.save(trained("lora", STACK), tmp_path / "file" / "adapter")


def test_the_current_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lorica.save(trained("lora", STACK), "adapter")
    assert lorica.load(Stack(), "adapter") == []


def test_another_model_cannot_take_the_adapter(folder):
    with pytest.raises(BaseError, match="different"):
        lorica.load(torch.nn.Sequential(torch.nn.Linear(12, 20)), folder)
    with pytest.raises(LoricaError):
        lorica.load(torch.nn.Sequential(torch.nn.Linear(12, 20)), folder, allow_base="different")


def scheduled() -> torch.nn.Module:
    return lorica.adapt(Stack(), Method.named("adalora")(r=2))


def test_an_adapter_trained_without_its_schedule_is_refused(tmp_path):
    model = scheduled()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    with pytest.raises(ConfigError, match="never driven") as error:
        lorica.save(model, tmp_path / "adapter")
    assert "lorica.Driver" in (error.value.fix or "") and not list(tmp_path.iterdir())


def test_one_that_was_driven_or_loaded_or_not_trained_is_saved(tmp_path):
    lorica.save(scheduled(), tmp_path / "fresh")
    model = scheduled()
    driver = lorica.Driver(model, total=9)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1)
    for _ in range(2):  # at first e is zero, and has a gradient only
        (STACK.run(model).square().mean() + driver.penalty()).backward()
        driver.before_step()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    assert not torch.equal(STACK.run(model), STACK.run(Stack()))
    loaded = Stack()
    lorica.load(loaded, lorica.save(model, tmp_path / "driven"))
    assert bank_of(loaded).driven == {"default"}
    lorica.save(loaded, tmp_path / "again")
    lorica.detach(loaded)
    assert bank_of(loaded).driven == set()


@pytest.mark.parametrize(
    "method",
    [
        Hyperlora(r=2, conditions=("en-fr", "en-de")),
        Ia3(feedforward_modules=["down_proj"]),
        PromptTuning(num_virtual_tokens=3, init="text", init_ids=(5, 6)),
        Lora(init="pissa_niter_4"),
        PrefixTuning(num_virtual_tokens=2, reparametrisation=3),
    ],
    ids=lambda method: method.name,
)
def test_settings_of_every_type_come_back(method, tmp_path):
    model = lorica.adapt(small_llama(), method)
    fresh = small_llama()
    lorica.load(fresh, lorica.save(model, tmp_path / "adapter"))
    assert spec_of(fresh, "default") == spec_of(model, "default")
