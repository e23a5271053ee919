"""A merge that is written tensor by tensor gives the files of one that is saved as a whole."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lorica
from lorica.formats import merge as merging
from lorica.formats.merge import merge_to
from tests import small_base
from tests.formats.merges import INDEX, gpt2, qwen2, untied_llama, write_adapter, write_base


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    assert sum(map(len, files)) == len({key for own in files for key in own}), "written once"
    return {key: tensor for own in files for key, tensor in own.items()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def merged_both_ways(
    adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Path, Path]:
    """Folders of the streamed merge, and of the model saved as a whole."""
    reports = [merge_to(adapter, folder / "streamed", limit=100.0, **settings)]
    with monkeypatch.context() as patch:
        patch.setattr(merging, "plan_merge", lambda *_: None)
        reports.append(merge_to(adapter, folder / "whole", limit=100.0, **settings))
    streamed, whole = ([n for n in r.notices if "logits" not in n] for r in reports)
    assert streamed == whole
    assert reports[0].lost == pytest.approx(reports[1].lost, rel=1e-2, abs=1e-4)
    return folder / "streamed", folder / "whole"


def assert_same_model(streamed: Path, whole: Path) -> None:
    ours, theirs = tensors_of(streamed), tensors_of(whole)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
    assert config_of(streamed) == config_of(whole)
    names = [{p.name for p in f.iterdir() if p.suffix != ".safetensors"} for f in (streamed, whole)]
    assert names[0] - {INDEX} == names[1] - {INDEX}


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "tied": (small_base.model, {"target_modules": "all-linear"}),
    "dora": (untied_llama, {"method": lorica.Dora(r=2), "target_modules": "all-linear"}),
    "untied by the merge": (small_base.model, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied by modules_to_save": (
        small_base.model,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "tokens": (
        small_base.model,
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]},
    ),
    "head": (untied_llama, {"target_modules": ["lm_head", "down_proj"]}),
    "biases": (qwen2, {"target_modules": "all-linear"}),
    "new biases": (untied_llama, {"method": lorica.Lora(r=2, lora_bias=True)}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "attn.c_proj"]}),
    "full": (untied_llama, {"method": lorica.method("full")}),
}
QUICK = ("untied by the merge", "new biases")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_both_ways_give_the_same_bits(case, tmp_path, monkeypatch):
    make, settings = CASES[case]
    base = write_base(make(), tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", **settings)
    assert_same_model(*merged_both_ways(adapter, tmp_path, monkeypatch))


@pytest.mark.parametrize(
    ("on_disk", "dtype"),
    [
        ("bfloat16", None),
        pytest.param("float32", "bfloat16", marks=pytest.mark.slow),
        pytest.param("bfloat16", "float32", marks=pytest.mark.slow),
        pytest.param("float32", "float16", marks=pytest.mark.slow),
        pytest.param("float16", None, marks=pytest.mark.slow),
    ],
)
def test_dtypes(on_disk, dtype, tmp_path, monkeypatch):
    base = write_base(untied_llama(), tmp_path / "base", getattr(torch, on_disk))
    adapter = write_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    streamed, whole = merged_both_ways(adapter, tmp_path, monkeypatch, dtype=dtype)
    assert_same_model(streamed, whole)
    assert {t.dtype for t in tensors_of(streamed).values()} == {getattr(torch, dtype or on_disk)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [untied_llama, gpt2])
@pytest.mark.parametrize("target", ["dequant", "original"])
@pytest.mark.parametrize("on_disk", ["float32", "bfloat16"])
def test_quantised_bases(make, target, on_disk, tmp_path, monkeypatch):
    base = write_base(make(), tmp_path / "base", getattr(torch, on_disk))
    targets = ["c_attn"] if make is gpt2 else ["q_proj", "down_proj"]
    adapter = write_adapter(base, tmp_path / "adapter", quantisation="nf4", target_modules=targets)
    assert_same_model(*merged_both_ways(adapter, tmp_path, monkeypatch, target=target))


@pytest.mark.slow
def test_a_classifier(tmp_path, monkeypatch):
    base = write_base(untied_llama(), tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "a", labels=["bad", "good"], modules_to_save=["score"])
    streamed, whole = merged_both_ways(adapter, tmp_path, monkeypatch)
    assert_same_model(streamed, whole)
    assert config_of(streamed)["id2label"] == {"0": "bad", "1": "good"}
    assert "score.weight" in tensors_of(streamed)


@pytest.mark.slow
def test_keys_without_the_prefix_of_the_decoder(tmp_path, monkeypatch):
    base = write_base(small_base.model().model, tmp_path / "base")
    assert not any(key.startswith("model.") for key in tensors_of(base))
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    streamed, whole = merged_both_ways(adapter, tmp_path, monkeypatch)
    assert_same_model(streamed, whole)
    files = {p.name for p in streamed.glob("*.safetensors")}
    assert files == {p.name for p in base.glob("*.safetensors")}


def test_the_files_are_those_of_the_base(tmp_path):
    base = write_base(untied_llama(), tmp_path / "base")
    before = json.loads((base / INDEX).read_text())
    extra = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_to(extra, tmp_path / "out", limit=100.0)
    after = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(set(before["weight_map"].values())) > 2
    assert after == before
    for file in base.glob("*.safetensors"):
        assert load_file(tmp_path / "out" / file.name).keys() == load_file(file).keys()


def test_tensors_stay_in_their_files_in_the_cache_of_the_hub_too(tmp_path):
    """Whatever their sizes; the files have the names of the index, not those of the blobs."""
    cache = tmp_path / "models--a--b"
    base = write_base(untied_llama(), cache / "snapshots/c", size="1GB")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    (cache / "blobs").mkdir()
    places = {}
    for i, name in enumerate(("a-1.safetensors", "b-2.safetensors")):
        own = sorted(tensors)[i::2]
        save_file({key: tensors[key] for key in own}, cache / f"blobs/{i}", {"format": "pt"})
        (base / name).symlink_to(cache / f"blobs/{i}")
        places |= dict.fromkeys(own, name)
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge_to(adapter, tmp_path / "out", limit=100.0)
    assert json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"] == places
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("system", ["has no such call", "its file system has none"])
def test_a_system_that_cannot_reserve_space_writes_the_same_files(tmp_path, monkeypatch, system):
    from lorica.formats import sharded_files
    from lorica.formats.sharded_files import ShardedFiles, StoredTensor

    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if system == "has no such call":  # macOS
        monkeypatch.delattr(sharded_files.os, "posix_fallocate")
    else:
        monkeypatch.setattr(sharded_files.os, "posix_fallocate", refuse)
    tensor = torch.arange(12.0).view(3, 4)
    name = "model.safetensors"
    with ShardedFiles(tmp_path, {name: [StoredTensor("a", (3, 4), torch.float32)]}) as files:
        files.write("a", tensor)
    assert torch.equal(load_file(tmp_path / name)["a"], tensor)
