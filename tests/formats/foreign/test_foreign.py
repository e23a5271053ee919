"""Adapters of other tools load with the logits of W + scale * B A, computed by hand."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorica
from lorica.cli.describe import describe
from lorica.errors import FileError
from lorica.formats.adapter_file import read
from lorica.formats.export import export_lora
from lorica.serve.reading import Reader
from tests.formats.foreign.folders import CASES, IDS, expected


@pytest.fixture(scope="module")
def base(small_base: Path):
    return AutoModelForCausalLM.from_pretrained(small_base).eval()


@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_the_update_added_by_hand(name, base, small_base, tmp_path):
    case = CASES[name]
    own = case.write(tmp_path / "adapter")
    want = expected(base, own)
    model = AutoModelForCausalLM.from_pretrained(small_base).eval()
    notices = lorica.load(model, tmp_path / "adapter")
    with torch.no_grad():
        logits = model(IDS).logits
        moved = (want - base(IDS).logits).abs().max()
    assert moved > 0.5, "an adapter that does nothing would pass"
    torch.testing.assert_close(logits, want, atol=2e-5 * float(moved), rtol=1e-4)
    assert len(notices) == len(case.notices) + 1 and "cannot be verified" in notices[-1]
    for words, notice in zip(case.notices, notices, strict=False):
        assert words in notice


@pytest.mark.parametrize("name", CASES)
def test_info_names_the_layout(name, tmp_path):
    case = CASES[name]
    case.write(tmp_path / "adapter")
    described = describe(str(tmp_path / "adapter"))
    assert described["layout"] == case.tool == read(tmp_path / "adapter").tool
    assert described["tensors"] > 0 and described["what"] == "adapter"


@pytest.mark.parametrize("name", CASES)
def test_reading_into_memory_is_the_same_adapter(name, tmp_path):
    CASES[name].write(tmp_path / "adapter")
    mapped, held = read(tmp_path / "adapter"), read(tmp_path / "adapter", max_bytes=2**20)
    assert mapped.digest == held.digest and mapped.spec == held.spec
    for key, tensor in mapped.tensors.items():
        assert torch.equal(tensor, held.tensors[key])


def test_a_server_and_export_take_shards_and_other_layouts(small_base, tmp_path):
    for name in ("shards", "LitGPT", "mlx-lm"):
        CASES[name].write(tmp_path / name)
        assert Reader().read(tmp_path / name).tool == CASES[name].tool
        export_lora(tmp_path / name, tmp_path / f"{name} out", base=str(small_base))
        assert read(tmp_path / f"{name} out").tool == "lorica"


def test_a_server_counts_the_bytes_of_all_shards(tmp_path):
    CASES["shards"].write(tmp_path / "adapter")
    sizes = [p.stat().st_size for p in (tmp_path / "adapter").glob("*-of-*")]
    with pytest.raises(FileError, match="has at most"):
        Reader(max_bytes=sum(sizes) - 1).read(tmp_path / "adapter")
    assert Reader(max_bytes=sum(sizes)).read(tmp_path / "adapter")
