"""Bases: a folder of a transformers model, safetensors only, whole, frozen, the same each time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorica.base.load import load
from lorica.errors import BaseError, ConfigError, FileError
from tests.laws.bases import IDS, bits, same_bits


@pytest.fixture
def folder(story_base, tmp_path) -> Path:
    """A copy of a real base, to be spoilt."""
    return Path(shutil.copytree(story_base, tmp_path / "base"))


def weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_a_base_is_frozen_and_evaluates(story_base):
    base = load(str(story_base))
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert base.max_length == 512
    assert base.notices == []
    assert base.tokenizer.pad_token_id is not None
    with torch.no_grad():
        assert base.model(IDS).logits.isfinite().all()


def test_bfloat16_on_request(story_base):
    assert {p.dtype for p in load(str(story_base), dtype="bfloat16").model.parameters()} == {
        torch.bfloat16
    }
    with pytest.raises(ConfigError, match="float64"):
        load(str(story_base), dtype="float64")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_auto_is_the_dtype_of_the_files(story_base, tmp_path, name):
    dtype = getattr(torch, name)
    folder = Path(shutil.copytree(story_base, tmp_path / "base"))
    weights(folder, lambda s: s.update({key: t.to(dtype) for key, t in s.items()}))
    base = load(str(folder), dtype="auto")
    assert {p.dtype for p in base.model.parameters()} == {dtype}
    with torch.no_grad():
        assert base.model(IDS).logits.isfinite().all()


def test_a_classifier_starts_the_same_each_time_and_leaves_the_random_state_alone(story_base):
    before = torch.get_rng_state()
    one, two = (load(str(story_base), labels=["good", "bad", "so so"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(bits(one.model), bits(two.model))
    assert one.model.config.id2label == {0: "good", 1: "bad", 2: "so so"}
    assert one.model.score.out_features == 3
    (line,) = one.notices
    assert "score.weight" in line
    assert one.model.config.pad_token_id is not None


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    no_weights(folder)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def a_tensor_is_missing(folder: Path) -> None:
    weights(folder, lambda s: s.pop("model.layers.1.mlp.up_proj.weight"))


def a_tensor_of_another_shape(folder: Path) -> None:
    weights(folder, lambda s: s.update({"model.norm.weight": torch.ones(63)}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llaama"}')


def code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    config |= {"model_type": "mine", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of the author ran')")


BROKEN = {
    no_config: (BaseError, "no config.json"),
    no_weights: (FileError, "safetensors"),
    only_a_pickle: (FileError, "safetensors"),
    cut_short: (FileError, "damaged"),
    empty_weights: (FileError, "damaged"),
    a_tensor_is_missing: (FileError, "up_proj"),
    a_tensor_of_another_shape: (FileError, "norm"),
    broken_config: (FileError, "config.json cannot be read"),
    unknown_architecture: (BaseError, "llaama|architecture"),
    code_of_its_own: (BaseError, "code"),
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_base_is_named(spoil, folder):
    kind, words = BROKEN[spoil]
    spoil(folder)
    with pytest.raises(kind, match=words) as error:
        load(str(folder))
    assert str(folder) in str(error.value)
    assert error.value.fix


def test_a_tensor_too_many_is_a_named_line(folder):
    weights(folder, lambda s: s.update({"model.extra.weight": torch.ones(3)}))
    (line,) = load(str(folder)).notices
    assert "model.extra.weight" in line


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(path):
    with pytest.raises(BaseError, match="no folder") as error:
        load(path)
    assert error.value.fix
