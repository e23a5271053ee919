"""A quantised base is recognised: its fingerprint, and checkpoints in 4 bits."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.bitsandbytes_layers import from_bitsandbytes
from lorica.base.fingerprint import fingerprint, grade
from lorica.base.footprint import quantised_layers
from lorica.base.load import load
from lorica.errors import BaseError
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_adapter
from lorica.formats.save import save
from tests.base.quantised_bases import UP, copy_base, each_kind, logits, rewrite_weights
from tests.laws.bases import bits, move, same_bits


def write_quantised_checkpoint(base, out: Path) -> Path:
    """A base written as a checkpoint of 4 bits, by merging a small adapter into it."""
    lorica.adapt(base.model, Lora(r=1), target_modules=["layers.0.self_attn.q_proj"])
    for name, parameter in base.model.named_parameters():
        if ".adapters." in name:
            nn.init.normal_(parameter, std=0.3)
    save(base.model, out.parent / "faint", base_path=base.path)
    merge_to(out.parent / "faint", out, target="requant", limit=9.0)
    return out


@each_kind
def test_an_adapter_finds_its_quantised_base_again(kind, story_base, tmp_path):
    double = kind != "fp4"
    base = load(str(story_base), quantisation=kind, double_quantisation=double)
    move(lorica.adapt(base.model, Lora(r=2)))
    path = save(base.model, tmp_path / "adapter", base_path=str(story_base))
    saved = json.loads((path / "manifest.json").read_text())["base"]
    assert saved["quantisation"] == kind
    assert saved["double_quantisation"] == (kind == "nf4")
    assert saved["parameters"] == 260_032
    again = open_adapter(path)
    assert again.notices == base.notices, "the same base: no further notice"
    assert torch.equal(logits(again.model), logits(base.model))
    on_floats = open_adapter(path, quantisation="none")
    assert not quantised_layers(on_floats.model)
    (line,) = on_floats.notices
    assert line.startswith("base: same but quantised")
    assert f"{kind})" in line
    other = open_adapter(path, quantisation="int8" if kind == "nf4" else "nf4")
    assert "base: same but quantised" in other.notices[-1]
    plain = load(str(story_base), quantisation=kind, double_quantisation=double)
    assert grade(fingerprint(base.model), fingerprint(plain.model)) == "same"


def test_double_quantisation_is_kept(story_base, tmp_path):
    base = load(str(story_base), quantisation="nf4", double_quantisation=False)
    path = save(lorica.adapt(base.model, Lora()), tmp_path / "a", base_path=str(story_base))
    assert not any(
        layer.double_quantisation for layer in quantised_layers(open_adapter(path).model).values()
    )
    nested = open_adapter(path, double_quantisation=True)
    assert all(layer.double_quantisation for layer in quantised_layers(nested.model).values())
    assert "same but quantised" in nested.notices[-1]


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_other_weights_are_another_base_in_any_quantisation(kind, story_base, tmp_path):
    folder = copy_base(story_base, tmp_path)
    base = load(str(folder), quantisation="nf4")
    path = save(lorica.adapt(base.model, Lora()), tmp_path / "adapter", base_path=str(folder))
    rewrite_weights(folder, lambda state: state[f"{UP}.weight"].mul_(1.05))
    other = load(str(folder), quantisation=kind)
    with pytest.raises(BaseError, match="same shapes"):
        lorica.load(other.model, path)


def test_a_quantised_checkpoint_is_loaded_as_it_is(story_base, tmp_path):
    packed = write_quantised_checkpoint(
        load(str(story_base), quantisation="nf4"), tmp_path / "packed"
    )
    base = load(str(packed))
    assert [layer.kind for layer in quantised_layers(base.model).values()] == ["nf4"] * 35
    assert base.notices[-1] == "the original weights of 35 quantised layers are not known"
    first = quantised_layers(load(str(story_base), quantisation="nf4").model)
    for name, layer in quantised_layers(base.model).items():
        if name != "model.layers.0.self_attn.q_proj":
            assert same_bits(bits(layer), bits(first[name]))
    assert same_bits(bits(base.model), bits(load(str(packed), quantisation="nf4").model))
    for wanted in ("int8", "none"):
        with pytest.raises(BaseError, match="quantised already, as nf4"):
            load(str(packed), quantisation=wanted)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(packed)
    for name, layer in quantised_layers(
        base.model
    ).items():  # what it computes depends on the processor
        other = from_bitsandbytes(theirs.get_submodule(name))
        assert other is not None
        assert same_bits(bits(other), bits(layer))
    path = save(move(lorica.adapt(base.model, Lora(r=2))), tmp_path / "a", base_path=str(packed))
    assert open_adapter(path).notices == base.notices
