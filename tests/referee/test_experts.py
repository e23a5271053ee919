"""Adapters of fused experts: each reads what the other saves (PEFT's target_parameters)."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from lorica.core.bank import adapted_layers
from lorica.core.state import adapter_state
from lorica.errors import FileError
from tests.base.architectures import tiny
from tests.laws.bases import move
from tests.methods.test_expert_lora import IDS, MODELS

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix
CASES: dict[str, tuple[str, lorica.Lora, dict[str, Any]]] = {
    **{name: (name, lorica.Lora(r=3), {"target_parameters": "experts"}) for name in MODELS},
    "only_experts": (
        "qwen3_moe",
        lorica.Lora(r=2, use_rslora=True),
        {"target_modules": [], "target_parameters": "experts"},
    ),
    "one_of_two": (
        "mixtral",
        lorica.Lora(r=2),
        {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"]},
    ),
    "one_block": (
        "qwen3_moe",
        lorica.Lora(r=2),
        {"target_modules": [], "target_parameters": "experts", "layers_to_transform": [1]},
    ),
    "patterns": (
        "gpt_oss",
        lorica.Lora(r=2),
        {
            "target_parameters": "experts",
            "rank_pattern": {"down_proj": 4, "0.self_attn.q_proj": 3},
            "alpha_pattern": {"1.mlp.experts.gate_up_proj": 9},
        },
    ),
    "saved_whole": (
        "deepseek_v3",
        lorica.Lora(r=2),
        {"target_parameters": "experts", "modules_to_save": ["norm"]},
    ),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def ours(case: str) -> Any:
    name, method, targets = CASES[case]
    return move(lorica.adapt(tiny(name), method, **targets), size=0.2).eval()


SELDOM = ("qwen3_moe", "one_of_two", "one_block", "saved_whole")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SELDOM else []) for c in CASES]
)
def test_peft_reads_what_we_save_and_we_read_it_without_a_manifest(case, tmp_path):
    model, name = ours(case), CASES[case][0]
    want, state = logits(model), adapter_state(model)
    assert (want - logits(tiny(name))).abs().max() > 0.01
    lorica.save(model, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny(name), str(tmp_path / "a")).eval()
    torch.testing.assert_close(logits(theirs), want, atol=1e-5, rtol=1e-5)
    again = tiny(name)
    lorica.load(again, tmp_path / "a")
    assert torch.equal(logits(again), want)
    (tmp_path / "a/manifest.json").unlink()
    plain = tiny(name)
    lorica.load(plain, tmp_path / "a")
    own = adapter_state(plain)
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "mixtral" else [pytest.mark.slow]) for n in MODELS]
)
def test_we_read_what_peft_saves(name, tmp_path):
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_a_proj" if name == "deepseek_v3" else "q_proj"],
        target_parameters=["mlp.experts.down_proj", "experts.gate_up_proj"],
        rank_pattern={"experts.down_proj": 2},
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(tiny(name), config).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "a")
    want = logits(theirs)
    model = tiny(name)
    lorica.load(model, tmp_path / "a")
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=1e-5)
    lorica.merge(model)
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=1e-5)


def test_dora_of_experts_is_written_in_our_own_layout(tmp_path):
    """PEFT refuses it, so no adapter_config.json names it a LoRA."""
    model = tiny("mixtral")
    lorica.adapt(model, lorica.Dora(r=2), target_parameters="experts")
    move(model, size=0.2)
    lorica.save(model, tmp_path / "a")
    assert not (tmp_path / "a/adapter_config.json").exists()
    again = tiny("mixtral")
    lorica.load(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("damage", ["shape", "missing", "another_expert"])
def test_a_file_that_does_not_fit_is_refused_by_name(damage, tmp_path):
    lorica.save(ours("only_experts"), tmp_path / "a")
    (tmp_path / "a/manifest.json").unlink()
    path = tmp_path / "a/adapter_model.safetensors"
    file = load_file(path)
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    tensor = file.pop(key)
    if damage == "shape":
        file[key] = tensor[:-1].contiguous()
    elif damage == "another_expert":
        file[key.replace("experts", "experts.base_layer.base_layer")] = tensor
    save_file(file, path)
    model = tiny("qwen3_moe")
    with pytest.raises(FileError, match=r"layers\.0\.mlp\.experts\.down_proj\.a"):
        lorica.load(model, tmp_path / "a")
    assert not list(adapted_layers(model))


def test_a_weight_beside_a_regex_is_refused(tmp_path):
    lorica.save(ours("only_experts"), tmp_path / "a")
    (tmp_path / "a/manifest.json").unlink()
    path = tmp_path / "a/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "target_modules": "x.*", "target_parameters": ["q_proj.weight"]})
    )
    with pytest.raises(FileError, match=r"q_proj\.weight"):
        lorica.load(tiny("qwen3_moe"), tmp_path / "a")


def test_experts_that_the_base_does_not_have_are_noticed_or_missing(tmp_path):
    lorica.save(ours("one_of_two"), tmp_path / "a")
    (tmp_path / "a/manifest.json").unlink()
    with pytest.raises(FileError, match=r"experts\.lora_A"):
        lorica.load(tiny("llama"), tmp_path / "a")
    lorica.save(lorica.adapt(tiny("llama"), lorica.Lora(r=2)), tmp_path / "b")
    (tmp_path / "b/manifest.json").unlink()
    path = tmp_path / "b/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_parameters": ["up"]}))
    notices = lorica.load(tiny("llama"), tmp_path / "b")
    assert "target_parameters 'up' selects nothing here and is ignored" in notices
