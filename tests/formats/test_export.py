"""Adapters as plain LoRA: the same logits, or an error that says why not."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

import lorica
from lorica import Dora, Lora
from lorica.core.adapter import Adapter
from lorica.core.attach import activate
from lorica.core.bank import adapted_layers, bank_of, spec_of
from lorica.errors import ConfigError, MergeError, ResourceError
from lorica.formats.open_adapter import open_adapter
from tests.formats.exports import adapted, config_of, logits, near
from tests.laws.bases import Stack, gpt2, move, small_llama

WEIGHTS = "adapter_model.safetensors"
SCALED = {  # settings of LoRA whose scale is not 1, or is not the same everywhere
    "plain": {},
    "scale": {"alpha": 5},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"], "alpha": 3},
    "saved, tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 17]},
}


@pytest.mark.parametrize("case", SCALED)
def test_a_lora_is_exported_with_scale_1(case, tmp_path):
    model = adapted(**SCALED[case])
    want = logits(model)
    report = lorica.export_lora(model, tmp_path / "out")
    fresh = small_llama()
    assert lorica.load(fresh, tmp_path / "out") == []
    near(logits(fresh), want)
    assert report.exact and report.max_difference < 1e-4 < report.max_effect
    assert set(report.errors.values()) == {0.0} and report.lost == 0
    for _, _, adapters in adapted_layers(fresh):
        assert getattr(adapters["default"], "scale", 1) == 1
    method = spec_of(fresh, "default").method
    assert (method.name, method.use_rslora) == ("lora", False)


@pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix
@pytest.mark.parametrize("case", SCALED)
def test_peft_loads_the_export(case, tmp_path):
    from peft import PeftModel

    model = adapted(**SCALED[case])
    lorica.export_lora(model, tmp_path / "out")
    near(logits(PeftModel.from_pretrained(small_llama(), str(tmp_path / "out"))), logits(model))


def test_a_trained_bias_is_exported(tmp_path):
    model = adapted(gpt2, alpha=5, lora_bias=True)
    want = logits(model)
    lorica.export_lora(model, tmp_path / "out")
    fresh = gpt2()
    lorica.load(fresh, tmp_path / "out")
    near(logits(fresh), want)
    assert config_of(tmp_path / "out")["lora_bias"] is True


def test_components_that_are_zero_are_left_out_and_so_are_layers(tmp_path):
    model = adapted(target_modules=["q_proj", "v_proj"])
    for site, _, adapters in adapted_layers(model):
        with torch.no_grad():
            if "layers.0" in site:
                adapters["default"].b[:, 1:] = 0
            elif "layers.1" in site:
                adapters["default"].a.zero_()
    want = logits(model)
    report = lorica.export_lora(model, tmp_path / "out")
    assert {r for s, r in report.ranks.items() if "layers.0" in s} == {1}
    assert {r for s, r in report.ranks.items() if "layers.1" in s} == {0}
    assert {r for s, r in report.ranks.items() if "layers.2" in s} == {4}
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert not [key for key in tensors if "layers.1" in key]
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape[0] == 1
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"] == {s: 1 for s in report.ranks if "layers.0" in s}
    assert any("2 more do nothing" in line for line in report.notices)
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    near(logits(fresh), want)


def test_an_adapter_that_does_nothing_yet(tmp_path):
    report = lorica.export_lora(lorica.adapt(small_llama(), Lora()), tmp_path / "out")
    assert set(report.ranks.values()) == {0} and report.max_difference == 0
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    assert torch.equal(logits(fresh), logits(small_llama()))


def test_the_model_is_left_as_it_was(tmp_path):
    model = adapted()
    move(lorica.adapt(model, Lora(r=2), name="second"), 3)
    activate(model, "default", "second")
    model.train()
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    before = copy.deepcopy(model)
    lorica.export_lora(model, tmp_path / "out", name="second")
    assert bank_of(model).route.names == ("default", "second")
    assert bank_of(model).specs.keys() == {"default", "second"}
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    flags = [[p.requires_grad for p in m.parameters()] for m in (model, before)]
    assert flags[0] == flags[1]
    for (key, after), (_, original) in zip(
        model.named_parameters(), before.named_parameters(), strict=True
    ):
        assert torch.equal(after, original), key
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    with lorica.use(before, "second"):
        near(logits(fresh), logits(before))


class NonLinear(Adapter):
    affine = False


def test_an_adapter_that_is_not_a_change_of_weights_is_refused(tmp_path):
    model = adapted(target_modules=["q_proj"])
    for _, _, adapters in adapted_layers(model):
        adapters["default"] = NonLinear()
    with pytest.raises(MergeError, match="not a linear function") as error:
        lorica.export_lora(model, tmp_path / "out", rank=4)
    assert error.value.fix == "use the adapter as it is"
    assert not list(tmp_path.iterdir())


class WrongFactors(Adapter):
    """Declares factors of zero, and adds a constant."""

    def after(self, x, y, base):
        return y + 1e-2

    def factors(self):
        return torch.zeros(1, 64), torch.zeros(64, 1)


def test_factors_that_differ_from_the_adapter_are_refused(tmp_path):
    model = adapted(target_modules=["q_proj"])
    for _, _, adapters in adapted_layers(model):
        adapters["default"] = WrongFactors()
    with pytest.raises(MergeError, match="differs from the lora adapter"):
        lorica.export_lora(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    model = adapted(kind=Dora)
    with torch.no_grad():
        next(adapters["default"] for _, _, adapters in adapted_layers(model)).m[0] = float("nan")
    with pytest.raises(MergeError, match="not finite"):
        lorica.export_lora(model, tmp_path / "out", rank=2)


@pytest.mark.parametrize("rank", [None, 2])
def test_logits_that_are_not_finite_are_refused(rank, tmp_path):
    model = adapted()
    model.get_output_embeddings().weight.data[5, 0] = float("inf")
    with pytest.raises(MergeError, match="logits on the probe text are not finite"):
        lorica.export_lora(model, tmp_path / "out", rank=rank)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_exists_is_refused(tmp_path):
    lorica.export_lora(adapted(), tmp_path / "out")
    with pytest.raises(ResourceError, match="there already"):
        lorica.export_lora(adapted(), tmp_path / "out")


def test_an_unknown_adapter_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        lorica.export_lora(adapted(), tmp_path / "out", name="other")


def test_a_model_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no vocabulary"):
        lorica.export_lora(move(lorica.adapt(Stack(), Lora())), tmp_path / "out")


def test_a_folder_keeps_its_base_its_tokenizer_and_its_classes(story_base, tmp_path):
    from lorica.base.load import load

    base = load(str(story_base), labels=["good", "bad"])
    move(lorica.adapt(base.model, Dora(), modules_to_save=["score"]))
    lorica.save(base.model, tmp_path / "in", tokenizer=base.tokenizer, labels=base.labels)
    lorica.export_lora(tmp_path / "in", tmp_path / "out", rank=64)
    again = open_adapter(tmp_path / "out")
    assert (again.path, again.labels) == (str(story_base), ["good", "bad"])
    assert again.notices == base.notices  # of the loader: the head is new; none of the adapter's
    near(logits(again.model), logits(base.model))
    notes = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("in", "out")]
    assert notes[0]["base"] == notes[1]["base"]
