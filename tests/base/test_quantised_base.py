"""Loading a base in 4 or 8 bits: which layers are quantised, what it measures, what is refused."""

import copy
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.fingerprint import fingerprint, grade
from lorica.base.footprint import footprint, quantised_layers
from lorica.base.load import load
from lorica.base.merge_quantised import check_target
from lorica.base.quantised_model import (
    layers_outside_decoder,
    quantisation_notices,
    quantise_model,
)
from lorica.core.site import site_of, sites_of
from lorica.errors import ConfigError, FileError, MergeError, MissingError
from tests.base.quantised_bases import UP, copy_base, each_kind, logits, rewrite_weights
from tests.laws.bases import bits, gpt2, same_bits


@each_kind
def test_linear_layers_are_quantised_and_the_rest_is_not(kind, story_base):
    base, plain = load(str(story_base), quantisation=kind), load(str(story_base)).model
    assert len(quantised_layers(base.model)) == 35
    assert isinstance(base.model.lm_head, nn.Linear)
    others = dict(base.model.named_parameters())
    assert others.keys() == {n for n, _ in plain.named_parameters() if "_proj" not in n}
    for name, parameter in others.items():
        assert torch.equal(parameter, plain.get_parameter(name))
        assert not parameter.requires_grad
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    packed, held = base.notices
    double = "" if kind == "int8" else " with double quantisation"
    assert packed.startswith(f"{kind}{double}: 35 linear layers are quantised, at ")
    assert packed.endswith("not quantised: lm_head")
    assert "520,064" in held, "two bytes for each of 260,032 parameters"
    off = (logits(base.model) - logits(plain)).abs().mean()
    assert 0.001 < off < {"nf4": 0.7, "fp4": 0.7, "int8": 0.04}[kind]
    assert not base.model.training
    assert torch.equal(logits(copy.deepcopy(base.model)), logits(base.model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(base.model))), logits(base.model))


def test_the_notices_state_the_measured_footprint(story_base):
    base = load(str(story_base), quantisation="nf4", double_quantisation=False, dtype="bfloat16")
    measured = footprint(base.model)
    weights = sum(s.in_features * s.out_features for s in sites_of(base.model)) - 512 * 64
    assert measured.parameters == 260_032
    assert measured.bits_per_parameter == 4.5
    assert measured.bytes == weights * 4.5 / 8 + 2 * (260_032 - weights)
    assert "4.500 bits" in base.notices[0]
    assert f"{measured.bytes:,} bytes" in base.notices[1]
    double = footprint(load(str(story_base), quantisation="nf4", dtype="bfloat16").model)
    assert double.bits_per_parameter is not None
    assert 4.126 < double.bits_per_parameter < 4.15
    assert footprint(lorica.adapt(base.model, Lora())) == measured, "an adapter is no part of it"
    plain = footprint(load(str(story_base)).model)
    assert (plain.bytes, plain.bits_per_parameter) == (4 * 260_032, None)


@each_kind
def test_codes_do_not_follow_the_dtype(kind, story_base):
    """Each run of a base packs the same as_float32, whatever it computes in."""
    first, second = (
        load(str(story_base), quantisation=kind, dtype=d) for d in ("float32", "bfloat16")
    )
    for name, layer in quantised_layers(first.model).items():
        assert same_bits(bits(layer), bits(quantised_layers(second.model)[name]))
    assert {p.dtype for p in second.model.parameters()} == {torch.bfloat16}
    assert second.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {layer.like.dtype for layer in quantised_layers(second.model).values()} == {
        torch.bfloat16
    }
    assert second.model.config.dtype == torch.bfloat16
    torch.testing.assert_close(logits(second.model), logits(first.model), atol=0.5, rtol=0.05)


def test_a_quantised_layer_reads_its_original_weight(story_base, tmp_path):
    model = load(str(story_base), quantisation="nf4").model
    site, plain = site_of("up", model.get_submodule(UP)), load(str(story_base)).model
    assert site is not None
    want = plain.get_submodule(UP).weight
    assert torch.equal(site.original(), want)
    assert torch.equal(pickle.loads(pickle.dumps(site.module)).original_weight(), want)
    dense = site_of("up", plain.get_submodule(UP))
    assert dense is not None
    assert dense.original() is None
    moved = Path(shutil.copytree(story_base, tmp_path / "base"))
    site = site_of("up", load(str(moved), quantisation="nf4").model.get_submodule(UP))
    assert site is not None
    shutil.rmtree(moved)
    with pytest.raises(FileError, match="up_proj"):
        site.original()


def test_originals_in_several_files(story_base, tmp_path):
    plain = load(str(story_base)).model
    plain.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 3
    for file in story_base.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    model = load(str(tmp_path / "base"), quantisation="int8").model
    for name, layer in quantised_layers(model).items():
        assert torch.equal(layer.original_weight(), plain.get_submodule(name).weight)


def test_an_original_weight_that_the_files_do_not_hold_gives_a_notice(story_base):
    """As where a loader turns weights: the file's tensor is not what was packed."""
    model = load(str(story_base)).model
    with torch.no_grad():
        weight = model.get_submodule(UP).weight
        weight.copy_(weight.roll(1, 0))
    quantise_model(model, str(story_base), torch.float32, "nf4", double_quantisation=True)
    unknown = [n for n, layer in quantised_layers(model).items() if layer.original_weight is None]
    assert unknown == [UP]
    assert (
        quantisation_notices(model)[-1]
        == "the original weights of 1 quantised layers are not known"
    )
    with pytest.raises(MergeError, match="not known"):
        check_target("original", model, "base")


def test_a_conv1d_base_is_quantised_and_reads_its_original_weight(tmp_path, story_base):
    plain = gpt2()
    plain.save_pretrained(tmp_path / "base")
    for file in story_base.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    base = load(str(tmp_path / "base"), quantisation="nf4")
    layer = quantised_layers(base.model)["transformer.h.0.attn.c_attn"]
    weight = plain.transformer.h[0].attn.c_attn.weight  # (I, O)
    assert (layer.in_features, layer.out_features, layer.transposed) == (32, 96, True)
    assert torch.equal(layer.original_weight(), weight.T)
    assert (layer.weight_as(torch.float32) - weight.T).norm() < 0.15 * weight.norm()
    assert torch.equal(layer.bias, plain.transformer.h[0].attn.c_attn.bias)
    assert grade(fingerprint(plain), fingerprint(base.model)) == "same but quantised"


def test_the_head_of_a_classifier_is_not_quantised(story_base):
    packed, plain = (
        load(str(story_base), labels=["a", "b"], quantisation=k) for k in ("nf4", None)
    )
    assert isinstance(packed.model.score, nn.Linear)
    assert torch.equal(packed.model.score.weight, plain.model.score.weight), "the start of seed 0"
    assert "score.weight" in packed.notices[0]
    assert packed.notices[1].endswith("not quantised: score")


def test_a_head_of_several_layers_is_not_quantised():
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    config = RobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert layers_outside_decoder(model) == ["classifier.dense", "classifier.out_proj"]


def test_a_base_that_cannot_be_quantised_is_refused(story_base, tmp_path, monkeypatch):
    folder = copy_base(story_base, tmp_path)
    with pytest.raises(ConfigError, match="nf3"):
        load(str(story_base), quantisation="nf3")
    rewrite_weights(folder, lambda state: state.pop(f"{UP}.weight"))
    with pytest.raises(FileError, match="up_proj"):
        load(str(folder), quantisation="nf4")
    shutil.copy(story_base / "model.safetensors", folder)
    rewrite_weights(folder, lambda state: state.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(FileError, match="norm"):
        load(str(folder), quantisation="int8")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingError, match="bitsandbytes"):
        load(str(story_base), quantisation="nf4")
    assert load(str(story_base)).notices == []
