"""Adapters as plain LoRA: the same function where there is one, refused or measured where not."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorica
from lorica import Dora, Full, Lora
from lorica.core.adapter import Adapter, Method
from lorica.core.attach import activate
from lorica.core.bank import adapted_layers, bank_of, spec_of
from lorica.core.condition import with_conditions
from lorica.errors import ConfigError, MergeError, ResourceError
from lorica.formats.low_rank import low_rank_update, truncated
from lorica.formats.open_adapter import open_adapter
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import CASES, IDS, Stack, gpt2, move, small_llama, trained

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


def adapted(make=small_llama, kind=Lora, **settings: Any) -> torch.nn.Module:
    words = {"r": 4} | {
        k: settings.pop(k) for k in ("alpha", "use_rslora", "lora_bias") if k in settings
    }
    return move(lorica.adapt(make(), kind(**words), **settings))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "adapter_config.json").read_text())


@pytest.mark.parametrize("case", SCALED)
def test_a_lora_becomes_one_of_scale_one(case, tmp_path):
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


@pytest.mark.filterwarnings("ignore")  # of peft's own, which are not ours to mend
@pytest.mark.parametrize("case", SCALED)
def test_peft_reads_it(case, tmp_path):
    from peft import PeftModel

    model = adapted(**SCALED[case])
    lorica.export_lora(model, tmp_path / "out")
    near(logits(PeftModel.from_pretrained(small_llama(), str(tmp_path / "out"))), logits(model))


def test_a_trained_bias_comes_along(tmp_path):
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
    for (key, one), (_, two) in zip(
        model.named_parameters(), before.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), key
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    with lorica.use(before, "second"):
        near(logits(fresh), logits(before))


def test_what_is_of_full_rank_is_refused_with_two_ways_out(tmp_path):
    for kind in (Dora, Full):
        model = move(lorica.adapt(small_llama(), kind()))
        with pytest.raises(MergeError, match="full rank") as error:
            lorica.export_lora(model, tmp_path / "out")
        assert "lorica merge" in error.value.fix and "--rank" in error.value.fix
        assert "layers.0" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_rank_of_choice_is_measured(tmp_path):
    model = adapted(kind=Dora)
    want, bare = logits(model), logits(small_llama())
    seen = []
    for rank in (1, 8, 64):
        report = lorica.export_lora(model, tmp_path / str(rank), rank=rank)
        assert not report.exact and max(report.ranks.values()) <= rank
        fresh = small_llama()
        lorica.load(fresh, tmp_path / str(rank))
        seen.append((max(report.errors.values()), report.kl, (logits(fresh) - want).abs().max()))
        assert any(f"{report.lost:.2%}" in line for line in report.notices)
    assert seen[0] > seen[1] > seen[2]
    assert all(a > b for a, b in zip(seen[0], seen[2], strict=True))
    near(logits(fresh), want)
    assert (want - bare).abs().max() > 1e-2


def test_the_error_of_a_site_is_what_is_lost_of_its_update(tmp_path):
    model = adapted(kind=Dora, target_modules=["down_proj"])
    report = lorica.export_lora(model, tmp_path / "out", rank=3)
    fresh, merged, cut = small_llama(), copy.deepcopy(model), small_llama()
    lorica.merge(merged)
    lorica.load(cut, tmp_path / "out")
    lorica.merge(cut)
    for site, error in report.errors.items():
        base, want, got = (m.get_submodule(site).weight for m in (fresh, merged, cut))
        lost = ((want - got).norm() / (want - base).norm()).item()
        assert lost == pytest.approx(error, rel=1e-3) and 0 < error < 1


def test_full_fine_tuning_is_cut_and_its_norms_are_kept(tmp_path):
    model = move(lorica.adapt(small_llama(), Full()), size=0.01)
    want = logits(model)
    report = lorica.export_lora(model, tmp_path / "out", rank=64)
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    torch.testing.assert_close(logits(fresh), want, atol=1e-4, rtol=1e-4)
    saved = config_of(tmp_path / "out")["modules_to_save"]
    assert {name.rpartition(".")[2] for name in saved} == {
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert "model.embed_tokens" in report.ranks


def test_biases_and_an_embedding_together_are_refused(tmp_path):
    model = move(lorica.adapt(gpt2(), Full()))
    with pytest.raises(MergeError, match=r"biases, and transformer\.wte"):
        lorica.export_lora(model, tmp_path / "out", rank=4)


class Bent(Adapter):
    affine = False


def test_what_is_no_change_of_weights_is_refused_with_the_reason(tmp_path):
    model = adapted(target_modules=["q_proj"])
    for _, _, adapters in adapted_layers(model):
        adapters["default"] = Bent()
    with pytest.raises(MergeError, match="not a linear function") as error:
        lorica.export_lora(model, tmp_path / "out", rank=4)
    assert error.value.fix == "use the adapter as it is"
    assert not list(tmp_path.iterdir())


class Wrong(Adapter):
    """Says that it does nothing, and does something."""

    def after(self, x, y, base):
        return y + 1e-2

    def factors(self):
        return torch.zeros(1, 64), torch.zeros(64, 1)


def test_factors_that_are_not_what_the_adapter_does_are_found_out(tmp_path):
    model = adapted(target_modules=["q_proj"])
    for _, _, adapters in adapted_layers(model):
        adapters["default"] = Wrong()
    with pytest.raises(MergeError, match="differs from the lora adapter"):
        lorica.export_lora(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_told(tmp_path):
    model = adapted(kind=Dora)
    with torch.no_grad():
        next(adapters["default"] for _, _, adapters in adapted_layers(model)).m[0] = float("nan")
    with pytest.raises(MergeError, match="not finite"):
        lorica.export_lora(model, tmp_path / "out", rank=2)


@pytest.mark.parametrize("rank", [None, 2])
def test_logits_that_are_not_finite_are_told(rank, tmp_path):
    model = adapted()
    model.get_output_embeddings().weight.data[5, 0] = float("inf")
    with pytest.raises(MergeError, match="logits on the probe text are not finite"):
        lorica.export_lora(model, tmp_path / "out", rank=rank)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one(rank, tmp_path):
    with pytest.raises(ConfigError, match=f"rank is {rank}"):
        lorica.export_lora(small_llama(), tmp_path / "out", rank=rank)


def test_an_output_that_is_there(tmp_path):
    lorica.export_lora(adapted(), tmp_path / "out")
    with pytest.raises(ResourceError, match="there already"):
        lorica.export_lora(adapted(), tmp_path / "out")


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        lorica.export_lora(adapted(), tmp_path / "out", name="other")


def test_a_model_without_a_vocabulary(tmp_path):
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


def test_truncation_of_a_matrix_written_out():
    """diag(4, 3, 0) of rank 1 is diag(4, 0, 0): 3 of the norm 5 is lost."""
    a, b, error = truncated(torch.diag(torch.tensor([4.0, 3.0, 0.0])), 1)
    assert (a.shape, b.shape) == ((1, 3), (3, 1))
    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([4.0, 0.0, 0.0])))
    assert error == pytest.approx(0.6)
    a, b, error = truncated(torch.diag(torch.tensor([4.0, 3.0, 0.0])), 3)
    assert len(a) == 2 and error == 0  # the third singular value is 0
    a, b, error = truncated(torch.zeros(2, 3), 2)
    assert (a.shape, b.shape, error) == ((0, 3), (2, 0), 0.0)


def test_a_lower_rank_than_the_factors_have_is_cut_too():
    model = adapted(target_modules=["q_proj"])
    _, module, adapters = next(adapted_layers(model))
    part = low_rank_update(adapters.as_site(module), adapters["default"], 2)
    whole = low_rank_update(adapters.as_site(module), adapters["default"], None)
    assert (part.r, whole.r) == (2, 4) and 0 < part.error < 1 and whole.error == 0
    assert low_rank_update(adapters.as_site(module), adapters["default"], 9).r == 4


@pytest.mark.slow
def test_each_condition_is_a_lora_of_its_own(tmp_path):
    model = small_llama()
    lorica.adapt(model, Hyperlora(r=3, conditions=("a", "b")), target_modules=["q_proj", "v_proj"])
    move(model)
    path = lorica.save(model, tmp_path / "in")
    with pytest.raises(MergeError, match="no single one is set") as error:
        lorica.export_lora(model, tmp_path / "out")
    assert error.value.facts["known"] == "a, b" and "--condition" in (error.value.fix or "")
    with pytest.raises(MergeError, match="no single one is set"):
        lorica.export_lora(model, tmp_path / "out", rank=2)
    seen = []
    for one in ("a", "b"):
        report = lorica.export_lora(model, tmp_path / one, condition=one)
        assert (report.condition, set(report.ranks.values())) == (one, {3})
        fresh = small_llama()
        lorica.load(fresh, tmp_path / one)
        with with_conditions(model, [one, one]):
            near(logits(fresh), logits(model))
        seen.append(logits(fresh))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    small_llama().save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    again = lorica.export_lora(path, tmp_path / "from folder", condition="b", base=base)
    assert again.max_difference < 1e-4
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "from folder")
    near(logits(fresh), seen[1])
    with pytest.raises(ConfigError):
        lorica.export_lora(model, tmp_path / "no", condition="c")
    with pytest.raises(ConfigError, match="takes no condition"):
        lorica.export_lora(adapted(), tmp_path / "no", condition="a")
    assert not (tmp_path / "no").exists()


LLAMA = next(case for case in CASES if case.name == "llama")
ASKED = [name for name in Method.names() if name != "hyperlora"]  # its conditions are above


@pytest.mark.parametrize("name", ASKED)
def test_every_method_is_what_it_says_to_be_as_a_lora(name, tmp_path):
    """Exact at once; of full rank only cut; or nothing that a weight can do."""
    model, kind = trained(name, LLAMA), Method.named(name).to_lora
    want = logits(model)
    if kind == "exact":
        report = lorica.export_lora(model, tmp_path / "out")
        assert report.exact and report.method == name and max(report.ranks.values()) > 0
        fresh = small_llama()
        lorica.load(fresh, tmp_path / "out")
        torch.testing.assert_close(logits(fresh), want, atol=5e-5, rtol=1e-5)
        assert (want - logits(small_llama())).abs().max() > 1e-3
        return
    with pytest.raises(MergeError, match="full rank" if kind == "approximate" else "is not a LoRA"):
        lorica.export_lora(model, tmp_path / "out")
    if kind == "never":
        with pytest.raises(MergeError, match="cannot be written as a change of weights"):
            lorica.export_lora(model, tmp_path / "out", rank=4)
        return
    cut = [lorica.export_lora(model, tmp_path / str(rank), rank=rank) for rank in (1, 8, 64)]
    lost = [max(report.errors.values()) for report in cut]
    assert lost[0] > lost[1] > lost[2] and cut[0].kl > cut[2].kl < 1e-8


@pytest.mark.parametrize(
    "name, reason",
    [
        ("prefix_tuning", "attends to"),
        ("prompt_tuning", "attends to"),
        ("llama_adapter", "attends to"),
        ("bottleneck", "not a linear function"),
    ],
)
def test_methods_that_have_no_weight_are_refused_with_the_reason(name, reason, tmp_path):
    with pytest.raises(MergeError, match=reason) as error:
        lorica.export_lora(trained(name, LLAMA), tmp_path / "out")
    assert name in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind, rank", [(Lora, None), (Dora, 64)])
def test_an_adapter_of_a_quantised_base(kind, rank, story_base, tmp_path):
    from lorica.base.load import load

    base = load(str(story_base), quantisation="nf4")
    move(lorica.adapt(base.model, kind(r=4), target_modules=["q_proj", "down_proj"]))
    lorica.save(base.model, tmp_path / "in", tokenizer=base.tokenizer)
    report = lorica.export_lora(tmp_path / "in", tmp_path / "out", rank=rank)
    assert report.max_difference < 1e-4 < report.max_effect
    again = open_adapter(tmp_path / "out")  # on the quantised base, as it was trained
    near(logits(again.model), logits(base.model))
    (line,) = lorica.load(load(str(story_base)).model, tmp_path / "out")
    assert "same but quantised" in line
