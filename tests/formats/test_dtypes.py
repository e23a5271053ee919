"""Commands after a bfloat16 run: the dtype of the run, and the dtype and files of the base."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lorica
from lorica.base.checkpoint_tensors import dtype_of, keys_of, largest_file
from lorica.base.float32_compute import computed_in_float32
from lorica.base.load import load as load_base
from lorica.core.draws import drawing
from lorica.formats.export import export_lora
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_adapter
from lorica.formats.save import save
from tests.laws.bases import IDS


@pytest.fixture
def halved(story_base, tmp_path):
    """A base of several bfloat16 files, and an adapter that was trained on it in bfloat16."""
    model = load_base(str(story_base), dtype="bfloat16").model
    folder = tmp_path / "base"
    model.save_pretrained(folder, max_shard_size="150KB")  # type: ignore[operator]
    for file in story_base.glob("token*"):
        shutil.copy(file, folder)
    base = load_base(str(folder), dtype="bfloat16")
    lorica.adapt(base.model, lorica.Lora(r=4), target_modules="all-linear")
    with drawing(0):
        for name, parameter in base.model.named_parameters():
            if name.endswith(".b"):
                nn.init.normal_(parameter, std=0.1)
    return folder, save(base.model, tmp_path / "adapter", base_path=str(folder))


def test_an_adapter_opens_in_the_dtype_of_its_run(halved):
    _, adapter = halved
    assert json.loads((adapter / "manifest.json").read_text())["dtype"] == "bfloat16"
    asked = {None: torch.bfloat16, "float32": torch.float32}
    for dtype, wanted in asked.items():
        model = open_adapter(adapter, dtype=dtype).model
        assert model.get_parameter("model.embed_tokens.weight").dtype == wanted


def test_merging_keeps_the_dtype_and_the_files_of_the_base(halved, tmp_path):
    base, adapter = halved
    report = merge_to(adapter, tmp_path / "merged")
    assert report.dtype == "bfloat16"
    index = "model.safetensors.index.json"
    before, after = (json.loads((f / index).read_text()) for f in (base, tmp_path / "merged"))
    assert before["weight_map"] == after["weight_map"]
    whole = merge_to(adapter, tmp_path / "whole", dtype="float32")
    assert whole.lost < 1e-3 < report.lost < 0.05
    rounded = keys_of(str(tmp_path / "merged"))
    for key, file in keys_of(str(tmp_path / "whole")).items():
        wide, narrow = load_file(file)[key], load_file(rounded[key])[key]
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(wide.bfloat16(), narrow), "rounded once, from float32"


def test_an_exact_export_is_measured_in_float32(halved, tmp_path):
    _, adapter = halved
    assert export_lora(adapter, tmp_path / "out").exact


def test_rows_of_an_embedding_beyond_the_tokenizer_stay(story_base, tmp_path):
    """Many bases round their vocabulary up: Qwen, Phi."""
    base = load_base(str(story_base))
    base.model.resize_token_embeddings(576)  # type: ignore[operator]
    base.model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    for file in story_base.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    lorica.adapt(base.model, lorica.Lora(r=2))
    path = save(base.model, tmp_path / "a", base_path=str(tmp_path / "base"))
    assert len(open_adapter(path).model.get_parameter("model.embed_tokens.weight")) == 576


def test_what_is_on_disk(halved, story_base):
    keys = keys_of(str(halved[0]))
    assert (dtype_of(keys), dtype_of(keys_of(str(story_base)))) == ("bfloat16", "float32")
    assert largest_file(keys_of(str(story_base))) is None
    assert 100_000 < (largest_file(keys) or 0) <= 150_000
    assert dtype_of({}) is None


def test_a_bfloat16_model_computes_as_its_float32_copy_does(halved):
    narrow, wide = (load_base(str(halved[0]), dtype=d).model for d in ("bfloat16", "float32"))
    with torch.no_grad():
        with computed_in_float32(narrow):
            logits = narrow(IDS).logits
        assert torch.equal(logits, wide(IDS).logits)
        assert narrow(IDS).logits.dtype == torch.bfloat16
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
