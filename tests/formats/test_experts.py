"""Adapters of fused experts: compared and merged as weights, refused where a LoRA of layers is
written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import lorica
from lorica.base.load import load as load_base
from lorica.base.quantised_model import quantisation_notices
from lorica.errors import MergeError
from lorica.formats.difference import difference
from lorica.formats.merge import merge_to
from tests.base.architectures import tiny, write
from tests.laws.bases import move

IDS = torch.tensor([[5, 9, 33, 70, 12, 8, 99, 40]])


def saved(folder: Path, model: nn.Module, method: str = "lora", seed: int = 1) -> Path:
    lorica.adapt(model, lorica.method(method, r=2), target_parameters="experts")
    return lorica.save(move(model, seed, 0.2), folder)


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_no_lora_of_layers_says_what_an_adapter_of_experts_does(method, tmp_path):
    base = write(tmp_path / "base", "mixtral")
    path = saved(tmp_path / "a", load_base(str(base)).model, method)
    for rank in (None, 2):
        with pytest.raises(MergeError, match="fused weights of experts") as error:
            lorica.export_lora(path, tmp_path / "out", base=str(base), rank=rank)
        assert "mlp.experts.gate_up_proj" in str(error.value)
        assert "lorica merge" in str(error.value)
    with pytest.raises(MergeError, match="fused weights of experts"):
        lorica.combine({path: 1.0}, tmp_path / "out", base=str(base))


@pytest.mark.parametrize("name", ["gpt_oss", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_the_weights_of_experts_are_compared(name, tmp_path):
    base = str(write(tmp_path / "base", name))
    first = saved(tmp_path / "a", load_base(base).model)
    second = saved(tmp_path / "b", load_base(base).model, seed=2)
    same, other = (difference(first, path, base=base) for path in (first, second))
    experts = {n: layer for n, layer in other.layers.items() if ".experts." in n}
    assert len(experts) == 4 and not other.others
    assert same.same and all(layer.distance > 0.5 for layer in experts.values())


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("deepseek_v3", "gpt_oss")]


@pytest.mark.parametrize("name", ["mixtral", *SLOW])
def test_a_merged_folder_holds_the_experts_as_the_architecture_writes_them(name, tmp_path):
    base = write(tmp_path / "base", name)
    opened = load_base(str(base))
    path = saved(tmp_path / "a", opened.model)
    with torch.no_grad():
        want = opened.model(input_ids=IDS).logits
        assert (want - tiny(name)(input_ids=IDS).logits).abs().max() > 0.01
    merge_to(path, tmp_path / "merged", base=str(base))
    keys = load_file(tmp_path / "base/model.safetensors").keys()
    assert load_file(tmp_path / "merged/model.safetensors").keys() == keys
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)


def test_experts_of_a_base_in_four_bits_are_adapted_in_floats_and_noticed(tmp_path):
    base = write(tmp_path / "base", "qwen3_moe", hidden_size=64)
    model = load_base(str(base), quantisation="nf4").model
    (notice,) = [n for n in quantisation_notices(model) if "experts" in n]
    assert notice.startswith("4 fused weights of experts stay in floats")
    path = saved(tmp_path / "a", model)
    with torch.no_grad():
        want = model(input_ids=IDS).logits
        again = load_base(str(base), quantisation="nf4").model
        lorica.load(again, path)
        assert torch.equal(again(input_ids=IDS).logits, want)
        lorica.merge(again)
        torch.testing.assert_close(again(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)
