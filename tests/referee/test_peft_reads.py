"""PEFT adapts the layers that a folder of ours is of, or a notice says that it would not."""

import json
import re

import pytest
import torch

import lorica
from lorica.core.bank import adapted_layers
from lorica.formats.peft.layouts import peft_notices
from lorica.formats.peft.matching import CONVERTED, selected, shortest
from lorica.formats.save import PeftWarning
from tests.base.architectures import BASES, tiny
from tests.laws.bases import move

peft = pytest.importorskip("peft")
HARD = (
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "qwen3_next",
    "qwen2_moe",
    "ctrl",
    "mamba2",
    "llama4_chunks",
    "gemma3n",
    "gpt2",
)
IDS = torch.tensor([[5, 9, 33, 70, 12, 8, 99, 40]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in HARD else [pytest.mark.slow]) for n in BASES]
)
def test_peft_gives_the_same_logits_or_a_notice_says_that_it_cannot(name, tmp_path):
    model = tiny(name)
    ranks = {"down_proj": 3} if name in HARD[:4] else {}
    lorica.adapt(model, lorica.Lora(r=2, dropout=0.1), rank_pattern=ranks)
    move(model, size=0.1)
    model.eval()
    lorica.save(model, tmp_path / "a")
    notices = peft_notices(model, "default")
    with torch.no_grad():
        want = model(input_ids=IDS).logits
        again = tiny(name)
        lorica.load(again, tmp_path / "a")
        assert torch.equal(again(input_ids=IDS).logits, want)
        if notices:
            assert name in ("mamba", "mamba2", "falcon_mamba")
            return
        theirs = peft.PeftModel.from_pretrained(tiny(name), str(tmp_path / "a")).eval()
        torch.testing.assert_close(theirs(input_ids=IDS).logits, want, atol=2e-4, rtol=2e-4)
    (tmp_path / "a/manifest.json").unlink()
    plain = tiny(name)
    lorica.load(plain, tmp_path / "a")  # as PEFT's own folder
    assert {n for n, _, _ in adapted_layers(plain)} == {n for n, _, _ in adapted_layers(model)}


def test_a_base_that_peft_refuses_is_said(tmp_path):
    model = lorica.adapt(tiny("mamba2"), lorica.Lora(r=2))
    with pytest.warns(PeftWarning, match="PEFT refuses"):
        lorica.save(model, tmp_path / "a")
    (said,) = peft_notices(model, "default")
    assert "PEFT refuses backbone.layers.0.mixer.out_proj" in said
    assert (
        peft_notices(
            lorica.adapt(tiny("mamba2"), lorica.Lora(), target_modules=["in_proj"]), "default"
        )
        == []
    )


def test_names_that_endings_cannot_tell_apart_are_written_whole(tmp_path):
    lorica.save(lorica.adapt(tiny("ctrl"), lorica.Lora(r=2)), tmp_path / "a")
    targets = json.loads((tmp_path / "a/adapter_config.json").read_text())["target_modules"]
    assert "transformer.h.0.ffn.0" in targets and "0" not in targets


@pytest.mark.parametrize(
    "wanted, target",
    {
        ("b.q", "b.k"): ["k", "q"],
        ("b.q",): ["b.q"],  # as an ending it would name a.b.q as well: a regex
    }.items(),
)
def test_the_shortest_target_that_selects_the_same(wanted, target):
    every = ["a", "b", "b.q", "b.k", *(["a.b.q"] if len(wanted) == 1 else [])]
    found = shortest(wanted, every)
    assert selected(found, every) == set(wanted)
    assert found == (target if len(wanted) > 1 else re.escape("b.q"))


def test_the_models_whose_experts_peft_renames_are_known():
    """As the installed transformers and PEFT have it: a type that is new here must be added."""
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion")
    known = {
        kind
        for kind, group in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if group in conversion._MOE_TARGET_MODULE_MAPPING
    }
    assert known <= CONVERTED.keys()
