"""Bases in 4 and 8 bits: what is packed, that it is the same base, and runs from end to end."""

import copy
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lorica
from lorica import Lora
from lorica.base.bitsandbytes_layers import from_bitsandbytes
from lorica.base.fingerprint import fingerprint, grade
from lorica.base.footprint import footprint, quantised_layers
from lorica.base.load import load
from lorica.base.merge_quantised import check_target
from lorica.base.quantise import KINDS
from lorica.base.quantised_model import (
    keep_dequantised,
    layers_outside_decoder,
    quantisation_notices,
    quantise_model,
)
from lorica.core.site import site_of, sites_of
from lorica.errors import BaseError, ConfigError, FileError, MergeError, MissingError
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_adapter
from lorica.formats.save import save
from lorica.training.config import TrainConfig
from tests.laws.bases import IDS, bits, gpt2, move, same_bits

UP = "model.layers.1.mlp.up_proj"
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folder(story_base, tmp_path) -> Path:
    """A copy of a real base, to be changed."""
    return Path(shutil.copytree(story_base, tmp_path / "base"))


def rewritten(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@each_kind
def test_linear_layers_are_packed_and_the_rest_is_left(kind, story_base):
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
    assert 0.001 < off < {"nf4": 0.7, "fp4": 0.9, "int8": 0.07}[kind]
    assert not base.model.training
    assert torch.equal(logits(copy.deepcopy(base.model)), logits(base.model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(base.model))), logits(base.model))


def test_what_is_measured_is_what_is_said(story_base):
    base = load(str(story_base), quantisation="nf4", double_quantisation=False, dtype="bfloat16")
    found = footprint(base.model)
    weights = sum(s.in_features * s.out_features for s in sites_of(base.model)) - 512 * 64
    assert found.parameters == 260_032
    assert found.bits_per_parameter == 4.5
    assert found.bytes == weights * 4.5 / 8 + 2 * (260_032 - weights)
    assert "4.500 bits" in base.notices[0]
    assert f"{found.bytes:,} bytes" in base.notices[1]
    double = footprint(load(str(story_base), quantisation="nf4", dtype="bfloat16").model)
    assert double.bits_per_parameter is not None
    assert 4.126 < double.bits_per_parameter < 4.15
    assert footprint(lorica.adapt(base.model, Lora())) == found, "an adapter is no part of it"
    plain = footprint(load(str(story_base)).model)
    assert (plain.bytes, plain.bits_per_parameter) == (4 * 260_032, None)


@each_kind
def test_codes_do_not_follow_the_dtype(kind, story_base):
    """Each run of a base packs the same floats, whatever it computes in."""
    one, two = (load(str(story_base), quantisation=kind, dtype=d) for d in ("float32", "bfloat16"))
    for name, layer in quantised_layers(one.model).items():
        assert same_bits(bits(layer), bits(quantised_layers(two.model)[name]))
    assert {p.dtype for p in two.model.parameters()} == {torch.bfloat16}
    assert two.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {layer.like.dtype for layer in quantised_layers(two.model).values()} == {torch.bfloat16}
    assert two.model.config.dtype == torch.bfloat16
    torch.testing.assert_close(logits(two.model), logits(one.model), atol=0.5, rtol=0.05)


def test_a_packed_layer_knows_its_original(story_base, tmp_path):
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


def test_what_the_files_do_not_hold_is_unknown_and_said_so(story_base):
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


def requantised(base, out: Path) -> Path:
    """A base written as a checkpoint of 4 bits, by way of an adapter that does nothing much."""
    lorica.adapt(base.model, Lora(r=1), target_modules=["layers.0.self_attn.q_proj"])
    for name, parameter in base.model.named_parameters():
        if ".adapters." in name:
            nn.init.normal_(parameter, std=0.3)
    save(base.model, out.parent / "faint", base_path=base.path)
    merge_to(out.parent / "faint", out, target="requant", limit=9.0)
    return out


def test_a_conv1d_base_is_packed_and_knows_its_original(tmp_path, story_base):
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


# -- heads --------------------------------------------------------------------------------------


def test_a_classifiers_head_is_left(story_base):
    one, two = (load(str(story_base), labels=["a", "b"], quantisation=k) for k in ("nf4", None))
    assert isinstance(one.model.score, nn.Linear)
    assert torch.equal(one.model.score.weight, two.model.score.weight), "the start of seed 0"
    assert "score.weight" in one.notices[0]
    assert one.notices[1].endswith("not quantised: score")


def test_a_head_of_several_layers_is_left():
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    config = RobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert layers_outside_decoder(model) == ["classifier.dense", "classifier.out_proj"]


# -- the same base ------------------------------------------------------------------------------


@each_kind
def test_an_adapter_finds_its_quantised_base_again(kind, story_base, tmp_path):
    double = kind != "fp4"
    base = load(str(story_base), quantisation=kind, double_quantisation=double)
    move(lorica.adapt(base.model, Lora(r=2)))
    path = save(base.model, tmp_path / "adapter", base_path=str(story_base))
    there = json.loads((path / "manifest.json").read_text())["base"]
    assert there["quantisation"] == kind
    assert there["double_quantisation"] == (kind == "nf4")
    assert there["parameters"] == 260_032
    again = open_adapter(path)
    assert again.notices == base.notices, "same: no line says otherwise"
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
def test_other_weights_are_another_base_in_any_quantisation(kind, folder, tmp_path):
    base = load(str(folder), quantisation="nf4")
    path = save(lorica.adapt(base.model, Lora()), tmp_path / "adapter", base_path=str(folder))
    rewritten(folder, lambda state: state[f"{UP}.weight"].mul_(1.05))
    other = load(str(folder), quantisation=kind)
    with pytest.raises(BaseError, match="same shapes"):
        lorica.load(other.model, path)


def test_a_packed_checkpoint_is_loaded_as_it_is(story_base, tmp_path):
    packed = requantised(load(str(story_base), quantisation="nf4"), tmp_path / "packed")
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


# -- what is refused ----------------------------------------------------------------------------


def test_what_cannot_be_packed_is_named(story_base, folder, monkeypatch):
    with pytest.raises(ConfigError, match="nf3"):
        load(str(story_base), quantisation="nf3")
    rewritten(folder, lambda state: state.pop(f"{UP}.weight"))
    with pytest.raises(FileError, match="up_proj"):
        load(str(folder), quantisation="nf4")
    shutil.copy(story_base / "model.safetensors", folder)
    rewritten(folder, lambda state: state.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(FileError, match="norm"):
        load(str(folder), quantisation="int8")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingError, match="bitsandbytes"):
        load(str(story_base), quantisation="nf4")
    assert load(str(story_base)).notices == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"double_quantisation": False}, "has an effect only with"),
        ({"double_quantisation": False, "quantisation": "int8"}, "has an effect only with"),
        ({"quantisation": "nf4", "method": "full"}, "float weights"),
        ({"quantisation": "nf3"}, "nf4"),
        ({"unpacked_gib": -1.0}, "unpacked_gib"),
        ({"unpacked_gib": 1.0, "split": "device", "peer": "a:1"}, "a quantised base"),
    ],
)
def test_settings_that_clash(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(data="rows.jsonl", **settings)


# -- weights that are kept unpacked -------------------------------------------------------------


def gradients(model: nn.Module) -> list[torch.Tensor]:
    logits = model(IDS, use_cache=False).logits
    found = torch.autograd.grad(
        logits.float().sin().sum(), [p for p in model.parameters() if p.requires_grad]
    )
    return [logits.detach(), *found]


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("nf4", "bfloat16"),
        ("int8", "float32"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                ("nf4", "float32"),
                ("int8", "bfloat16"),
                ("fp4", "float32"),
                ("fp4", "bfloat16"),
            ]
        ),
    ],
)
def test_kept_weights_give_the_same_numbers(kind, dtype, story_base):
    models = [load(str(story_base), quantisation=kind, dtype=dtype).model for _ in range(2)]
    line = keep_dequantised(models[1], 2**20)
    assert line.startswith("the weights of 35 of 35 quantised layers")
    for model in models:
        move(lorica.adapt(model, Lora(r=4)))
    assert all(map(torch.equal, *map(gradients, models)))
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
    held = footprint(models[1]).bytes - footprint(models[0]).bytes
    assert f"in {held:,} bytes" in line
    assert footprint(models[1]).parameters == footprint(models[0]).parameters
    moved = [copy.deepcopy(model).to(torch.float64) for model in models]
    assert torch.equal(*map(logits, moved)), "another dtype is unpacked anew"
    for model in models:
        lorica.merge(model)
    assert torch.equal(*map(logits, models))


def test_memory_for_kept_weights_is_not_exceeded(story_base):
    model = load(str(story_base), quantisation="nf4").model
    packed = list(quantised_layers(model).values())
    first = 4 * packed[0].in_features * packed[0].out_features
    line = keep_dequantised(model, first + 100)
    assert "of 1 of 35" in line and f"{first:,} bytes" in line
    assert [layer.kept is not None for layer in packed] == [True] + [False] * 34
    before = packed[0].kept.clone()
    lorica.merge(move(lorica.adapt(model, Lora(r=4))))
    assert torch.equal(packed[0].kept, before), "merging read it, and wrote elsewhere"
    with pytest.raises(ConfigError, match="not quantised") as error:
        keep_dequantised(load(str(story_base)).model, 2**20)
    assert "nf4" in error.value.fix


# -- from end to end ----------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Tom has {n}", "completion": " red cats."} for n in range(24)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_run_on_a_quantised_base(kind, story_base, rows, tmp_path):
    settings = {
        "base": str(story_base),
        "data": {"path": str(rows), "validation": 0.2},
        "quantisation": kind,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "unpacked_gib": 1e-4,
    }
    result = lorica.train(output=str(tmp_path / "run"), **settings, show=False)
    loss = result.figures["held_out_loss"]
    assert loss["after"] < loss["before"] - 0.1
    base = result.figures["base"]
    assert (base["quantisation"], base["packed"]) == (kind, 35)
    assert base["bytes"] < base["bytes_in_bfloat16"]
    assert (4 if kind == "nf4" else 8) < base["bits_per_parameter"] < (5 if kind == "nf4" else 9)
    trained, total = (result.figures["parameters"][key] for key in ("trained", "total"))
    assert (trained, total) == (46_240, 260_032)
    assert result.notices[0].startswith(kind)
    assert sum("kept dequantised" in line for line in result.notices) == 1
    shutil.rmtree(tmp_path / "run/adapter")
    for path in sorted((tmp_path / "run/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    again = lorica.train(resume=tmp_path / "run", show=False)
    assert again.figures["held_out_loss"] == loss, "a resumed run packs the same bits"
    assert quantised_layers(open_adapter(tmp_path / "run").model)


def test_a_run_without_validation_is_not_packed_by_default(story_base, rows, tmp_path):
    result = lorica.train(
        base=str(story_base), data=str(rows), max_steps=1, output=str(tmp_path / "run"), show=False
    )
    assert result.figures["base"]["quantisation"] is None
    assert result.figures["base"]["bytes"] == 4 * 260_032
