"""Starts of LoRA that change the base: PiSSA, OLoRA and EVA, against PEFT."""

import json

import pytest
import torch

import lorica
from lorica import Lora
from lorica.core.bank import adapted_layers, spec_of
from lorica.errors import FileError
from tests.laws.bases import IDS, Stack, gpt2, move, stories
from tests.referee.models import LINEARS, QV, llama, logits, near

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix


def test_a_trained_bias_with_a_start_that_peft_has_only_without_bias(tmp_path):
    from peft import PeftModel

    model = move(lorica.adapt(llama(), Lora(r=4, init="pissa", lora_bias=True)))
    lorica.save(model, tmp_path / "ours")
    near(logits(PeftModel.from_pretrained(llama(), str(tmp_path / "ours"))), logits(model), 1e-5)


def test_ranks_that_eva_chose_are_saved(tmp_path):
    from peft import PeftModel

    from lorica.inits.eva import calibrate

    model = lorica.adapt(stories(), Lora(r=4, init="eva"), target_modules=LINEARS)
    assert len(set(calibrate(model, [{"input_ids": IDS}]).values())) > 1
    path = lorica.save(move(model), tmp_path / "ours")
    want = logits(model)
    near(logits(PeftModel.from_pretrained(stories(), str(path))), want, 2e-5)
    fresh, plain = stories(), stories()
    assert lorica.load(fresh, path) == [] and torch.equal(logits(fresh), want)
    (path / "manifest.json").unlink()
    lorica.load(plain, path)
    assert torch.equal(logits(plain), want)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_a_plain_lora_on_disk(start, tmp_path):
    model = move(lorica.adapt(stories(), Lora(r=4, alpha=6, init=start), target_modules=QV))
    path = lorica.save(model, tmp_path / "ours")
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 12) and "init_lora_weights" not in config
    fresh = stories()
    lorica.load(fresh, path)
    assert torch.equal(logits(fresh), logits(model))  # not a bit is lost
    (path / "manifest.json").unlink()
    plain = stories()
    lorica.load(plain, path)
    assert spec_of(plain, "default").method == Lora(r=8, alpha=12)
    near(logits(plain), logits(model), 1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_of_the_float_base_is_refused_on_a_quantised_base(start, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["up"], init_lora_weights=start)
    get_peft_model(Stack(), config).save_pretrained(str(tmp_path))
    assert lorica.load(Stack(), tmp_path)
    model = Stack(packed=True)
    with pytest.raises(FileError, match=f"{start} of the float base") as error:
        lorica.load(model, tmp_path)
    assert error.value.fix == "load the base without quantisation" and not list(
        adapted_layers(model)
    )


def test_olora_on_transposed_weights_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["attn.c_proj"],
        fan_in_fan_out=True,
        init_lora_weights="olora",
    )
    get_peft_model(gpt2(), config).save_pretrained(str(tmp_path))
    with pytest.raises(FileError, match="transposed"):
        lorica.load(gpt2(), tmp_path)
