"""Merged folders: plain transformers models, as close to the unmerged one as they say."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

import lorica
from lorica.base.bitsandbytes_layers import from_bitsandbytes
from lorica.base.footprint import quantised_layers
from lorica.base.load import load as load_base
from lorica.errors import ConfigError, MergeError, ResourceError
from lorica.formats.merge import REPORT, merge_to
from lorica.formats.save import save
from lorica.formats.verify import divergence
from tests import peft_adapters
from tests.laws.bases import IDS, bits, same_bits

CASES = {  # adapter that PEFT writes: whether the merged head is still tied to the embedding
    "lora": True,
    "lora-all-linear": True,
    "dora-all-linear": True,
    "lora-rslora": True,
    "lora-embedding": False,
    "lora-modules-to-save": True,
}
QUICK = ("dora-all-linear", "lora-embedding", "lora-modules-to-save")


@pytest.fixture(scope="module")
def by_peft(story_base, tmp_path_factory) -> Path:
    """The folder of the adapters that PEFT has written, by case."""
    return peft_adapters.write_all(story_base, tmp_path_factory.mktemp("by_peft"))


@pytest.mark.parametrize(
    ("case", "tied"),
    [
        pytest.param(*pair, marks=[] if pair[0] in QUICK else pytest.mark.slow)
        for pair in CASES.items()
    ],
)
def test_the_folder_is_a_plain_model_that_gives_pefts_logits(
    case, tied, by_peft, story_base, tmp_path
):
    report = merge_to(by_peft / case, tmp_path / "out", base=str(story_base))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = load_file(by_peft / case / "expected.safetensors")
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits_adapter"], atol=1e-4, rtol=1e-4)
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied
    assert any(line.startswith("untied") for line in report.notices) == (not tied)
    assert report.max_difference < 1e-3 < report.max_effect
    assert report.lost == 0


@pytest.mark.slow
def test_bfloat16_shows_its_rounding_and_a_strict_limit_refuses_it(by_peft, story_base, tmp_path):
    report = merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base), dtype="bfloat16")
    assert 1e-3 < report.lost < 0.05
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    with pytest.raises(MergeError, match=r"limit is 0\.1%.*\n(.*\n)*.*float32"):
        merge_to(
            by_peft / "lora", tmp_path / "no", base=str(story_base), dtype="bfloat16", limit=1e-3
        )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_faint_adapter_that_rounding_would_swallow_is_refused(story_base, tmp_path):
    """bfloat16 keeps 8 bits of a weight; this adapter moves them by less."""
    base = load_base(str(story_base))
    lorica.adapt(base.model, lorica.Lora(r=2), seed=0)
    for name, parameter in base.model.named_parameters():
        if parameter.requires_grad and name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=1e-5)
    save(base.model, tmp_path / "faint", base_path=str(story_base))
    with pytest.raises(MergeError, match="of what the adapter does"):
        merge_to(tmp_path / "faint", tmp_path / "out", dtype="bfloat16")
    assert merge_to(tmp_path / "faint", tmp_path / "out").lost == 0


def test_the_note_the_tokenizer_and_the_settings_come_with_it(by_peft, story_base, tmp_path):
    report = merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base), probe=["Tom"])
    folder = tmp_path / "out"
    note = json.loads((folder / REPORT).read_text())
    assert note["adapter"] == str(by_peft / "lora")
    assert note["kl"] == report.kl
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (folder, story_base))
    assert ours("Once upon a time")["input_ids"] == theirs("Once upon a time")["input_ids"]
    assert ours.pad_token == theirs.pad_token
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    modes = {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()}
    assert len(modes) == 1
    assert load_base(str(folder)).model.config.dtype == torch.float32


def test_a_classifier_merges_with_its_head(story_base, tmp_path):
    base = load_base(str(story_base), labels=["bad", "good"])
    lorica.adapt(base.model, lorica.Lora(r=2), modules_to_save=["score"], seed=0)
    for parameter in base.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        want = base.model(input_ids=ids).logits
    save(base.model, tmp_path / "adapter", base_path=str(story_base), labels=base.labels)
    merge_to(tmp_path / "adapter", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, want, atol=1e-4, rtol=1e-4)
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_an_output_that_is_there_is_left_alone(by_peft, story_base, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ResourceError, match="is there already"):
        merge_to(by_peft / "lora", tmp_path, base=str(story_base))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_a_resource_error(by_peft, story_base, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="cannot write"):
            merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base))
    finally:
        tmp_path.chmod(0o700)


def test_an_adapter_of_numbers_that_are_not_finite_is_refused(by_peft, story_base, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    source = Path(by_peft / "lora")
    (broken / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    tensors[next(iter(tensors))].fill_(float("nan"))
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(lorica.LoricaError, match="finite"):
        merge_to(broken, tmp_path / "out", base=str(story_base))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"limit": 0.0}])
def test_settings_out_of_range(settings, by_peft, story_base, tmp_path):
    with pytest.raises(ConfigError):
        merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base), **settings)


def quantised_adapter(path: Path, story_base: Path, kind: str, method: lorica.Lora) -> Path:
    """An adapter at all linear layers but k_proj, on a quantised base."""
    base = load_base(str(story_base), quantisation=kind)
    lorica.adapt(base.model, method, seed=0, exclude_modules=["k_proj"])
    torch.manual_seed(0)
    for name, parameter in base.model.named_parameters():
        if parameter.requires_grad and name.endswith((".b", ".m")):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return save(base.model, path, base_path=str(story_base))


METHODS = {"lora": lorica.Lora(r=2), "dora": lorica.Dora(r=2)}
KEYS = ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, kind",
    [
        ("lora", "nf4"),
        ("lora", "int8"),
        ("dora", "nf4"),
        ("dora", "int8"),
    ],
)
def test_each_target_of_a_quantised_base(method, kind, story_base, tmp_path):
    path = quantised_adapter(tmp_path / "a", story_base, kind, METHODS[method])
    codes = quantised_layers(load_base(str(story_base), quantisation=kind).model)
    reports = {
        target: merge_to(path, tmp_path / target, target=target, limit=100.0)
        for target in ("dequant", "original", "requant")
    }
    exact, back, again = (reports[t] for t in ("dequant", "original", "requant"))
    assert exact.lost == 0
    assert exact.max_difference < 1e-3 < exact.max_effect
    assert back.max_difference > 10 * exact.max_difference
    assert again.max_difference > 10 * exact.max_difference
    for target, report in reports.items():
        assert (report.target, report.quantisation) == (target, kind)
        assert json.loads((tmp_path / target / REPORT).read_text())["target"] == target
        assert any(kind in line or "original" in line for line in report.notices)
    merged, float_ = (
        load_file(tmp_path / t / "model.safetensors") for t in ("dequant", "original")
    )
    original = load_file(story_base / "model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.float32}
    assert merged.keys() == float_.keys()
    for key in KEYS:  # the update, and the error of quantisation, are what is said of them
        error = original[key] - codes[key.removesuffix(".weight")].weight_as(torch.float32)
        torch.testing.assert_close(float_[key] - merged[key], error, atol=1e-6, rtol=1e-5)
    assert torch.equal(float_[KEYS[1]], original[KEYS[1]]), "no adapter, no change"
    for target in ("dequant", "original"):
        assert "quantization_config" not in (tmp_path / target / "config.json").read_text()
        model = AutoModelForCausalLM.from_pretrained(tmp_path / target)
        assert not quantised_layers(load_base(str(tmp_path / target)).model)
        assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    packed = quantised_layers(load_base(str(tmp_path / "requant")).model)
    assert len(packed) == 35
    assert {layer.kind for layer in packed.values()} == {kind}
    name = KEYS[1].removesuffix(".weight")
    assert torch.equal(packed[name].codes, codes[name].codes), "no adapter, the same codes"


@pytest.mark.slow
def test_a_target_that_loses_too_much_is_refused_with_its_figures(story_base, tmp_path):
    path = quantised_adapter(tmp_path / "a", story_base, "fp4", METHODS["lora"])
    for target in ("original", "requant"):
        with pytest.raises(MergeError, match="of what the adapter does") as error:
            merge_to(path, tmp_path / "out", target=target)
        assert "--limit" in (error.value.fix or "")
        assert "dequant" in (error.value.fix or "")
        assert not (tmp_path / "out").exists()
    assert merge_to(path, tmp_path / "out").target == "dequant"


def test_a_float_base_has_no_target(by_peft, story_base, tmp_path):
    with pytest.raises(ConfigError, match="not quantised"):
        merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base), target="requant")
    with pytest.raises(ConfigError, match="dequantise"):
        merge_to(by_peft / "lora", tmp_path / "out", base=str(story_base), target="dequantise")
    report = merge_to(
        quantised_adapter(tmp_path / "a", story_base, "nf4", METHODS["lora"]),
        tmp_path / "out",
        quantisation="none",
    )
    assert (report.target, report.quantisation, report.lost) == (None, None, 0)
    assert any("same but quantised" in line for line in report.notices)


@pytest.mark.parametrize(
    "target",
    ["requant", *(pytest.param(t, marks=pytest.mark.slow) for t in ("dequant", "original"))],
)
def test_a_quantised_base_of_conv1d_layers(target, story_base, tmp_path):
    """Their weights lie (I, O) in the folder: c_proj is square, and would load turned silently."""
    config = GPT2Config(
        vocab_size=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for file in story_base.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    base = load_base(str(tmp_path / "base"), quantisation="nf4")
    lorica.adapt(base.model, lorica.Lora(r=2), target_modules=["c_attn", "attn.c_proj"])
    for parameter in base.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    path = save(base.model, tmp_path / "a", base_path=str(tmp_path / "base"))
    report = merge_to(path, tmp_path / "out", target=target, limit=100.0)
    assert report.lost < {"dequant": 1e-4, "original": 0.5, "requant": 0.5}[target]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = load_base(str(tmp_path / "out")).model
    if target == "requant":  # what layers of bitsandbytes compute depends on the processor
        for name, layer in quantised_layers(ours).items():
            other = from_bitsandbytes(theirs.get_submodule(name))
            assert other is not None
            assert same_bits(bits(other), bits(layer))
        return
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=1e-4)


def test_divergence_is_the_definition():
    torch.manual_seed(0)
    p, q = torch.randn(100, 7, dtype=torch.float64), torch.randn(100, 7, dtype=torch.float64)
    true = p.softmax(-1)
    want = (true * (true.log() - q.softmax(-1).log())).sum(-1).mean().item()
    assert divergence(p, q) == pytest.approx(want)
    assert divergence(p, p + 3.0) == pytest.approx(0, abs=1e-12)
