"""Another base is told from the same one by each number, each field and each tokenizer part."""

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

import lorica
from lorica.base.config_fields import IGNORED, changed_fields, computing_fields
from lorica.base.digest import CHUNK, digest, tokenizer_parts
from lorica.base.fingerprint import differences, fingerprint, grade
from lorica.base.footprint import quantised_layers
from lorica.base.load import load, load_tokenizer
from lorica.base.samples import places
from lorica.errors import BaseError
from tests.training.rows import tiny_base

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, sliding_window=8, use_sliding_window=True),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=2),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    base = load(str(tiny))
    lorica.adapt(base.model, lorica.Lora(r=2))
    return lorica.save(
        base.model, tmp_path_factory.mktemp("adapter") / "a", tokenizer=base.tokenizer
    )


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, list):
        return [*value[::-1], 0]
    if isinstance(value, dict):
        return {k: other(v) for k, v in value.items()}
    return f"{value}_new"


@pytest.mark.parametrize("name", CONFIGS)
def test_each_field_of_a_config_counts_unless_it_is_named(name):
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config)
    before = fingerprint(model)
    for field, value in config.to_dict().items():
        if field in ("model_type", "transformers_version"):
            continue
        said = {**config.to_dict(), field: other(value)}
        model.config = type("Config", (), {"to_dict": lambda self, said=said: said})()
        now = fingerprint(model, hashing=None)
        names = changed_fields(before.config or {}, now.config or {})
        assert bool(names) == (field not in IGNORED), field
        assert all(n.partition(".")[0] == field for n in names)


@pytest.mark.parametrize(
    "change, named",
    [
        (
            {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}},
            "rope_parameters.rope_theta 10000.0 -> 20000.0",
        ),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act silu -> gelu"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
            "num_attention_heads",
        ),
    ],
)
def test_an_adapter_on_a_base_of_another_function_is_refused(
    tiny, adapter, tmp_path, change, named
):
    config = json.loads((tiny / "config.json").read_text())
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, **change}))
    model.load_state_dict(load(str(tiny)).model.state_dict())
    with pytest.raises(BaseError, match="same shapes") as caught:
        lorica.load(model, adapter)
    assert named in str(caught.value)
    (line,) = lorica.load(model, adapter, allow_base="same shapes")
    assert named in line


def test_a_field_that_acts_in_training_alone_is_a_notice(tiny, adapter):
    model = load(str(tiny)).model
    model.config.attention_dropout = 0.25
    (line,) = lorica.load(model, adapter)
    assert "attention_dropout 0.0 -> 0.25" in line


def test_weights_zeroed_between_the_old_samples_are_found(tiny, adapter):
    model = load(str(tiny)).model
    with torch.no_grad():
        for parameter in model.parameters():
            keep = places(parameter.numel())
            flat = torch.zeros(parameter.numel())
            flat[keep] = parameter.view(-1)[keep]
            parameter.copy_(flat.view_as(parameter))
    with pytest.raises(BaseError, match="same shapes") as caught:
        lorica.load(model, adapter)
    assert "other_weights" in str(caught.value) and "gate_proj.weight" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_number_of_any_tensor_is_named(tiny, dtype):
    model = load(str(tiny), dtype=dtype).model
    before = fingerprint(model)
    for name, tensor in model.state_dict().items():
        with torch.no_grad():
            flat = tensor.view(-1)
            at = torch.randint(len(flat), (), generator=torch.Generator().manual_seed(len(name)))
            old = flat[at].clone()
            flat[at] = old * 1.02 + 0.001
            assert differences(before, fingerprint(model)) == {"weights": name}
            flat[at] = old
    assert grade(before, fingerprint(model)) == "same"


def test_rows_that_change_places_are_found():
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    assert digest(weight, rounded=True) != digest(weight.flip(0), rounded=True)
    assert digest(weight, rounded=True) != digest(-weight, rounded=True)


def test_a_digest_is_of_the_numbers_wherever_they_lie_and_are_cut():
    weight = torch.randn(3, CHUNK // 2, generator=torch.Generator().manual_seed(0))
    assert digest(weight, rounded=True) == digest(weight.bfloat16(), rounded=True)
    assert digest(weight.T, rounded=True) == digest(weight.T.contiguous(), rounded=True)
    assert digest(weight, rounded=False) != digest(weight * (1 + 1e-6), rounded=False)
    last = weight.clone()
    last[-1, -1] += 1
    assert digest(weight, rounded=True) != digest(last, rounded=True)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_packed_base_is_the_same_and_another_one_is_named(tiny, tmp_path, kind):
    plain = load(str(tiny)).model
    packed = load(str(tiny), quantisation=kind).model
    assert grade(fingerprint(plain), fingerprint(packed)) == "same but quantised"
    again = load(str(tiny), quantisation=kind, dtype="bfloat16").model
    assert grade(fingerprint(packed), fingerprint(again)) == "same"
    with torch.no_grad():
        plain.model.layers[1].mlp.up_proj.weight[3, 5] += 0.1
    plain.save_pretrained(tmp_path / "other")
    load_tokenizer(str(tiny)).save_pretrained(tmp_path / "other")
    other = load(str(tmp_path / "other"), quantisation=kind).model
    found = differences(fingerprint(packed), fingerprint(other))
    assert found == {"weights": "model.layers.1.mlp.up_proj.weight"}


def test_exact_digests_see_the_bits_and_the_codes(tiny):
    model = load(str(tiny)).model
    before = fingerprint(model, hashing="exact")
    with torch.no_grad():
        model.model.norm.weight[3] *= 1 + 1e-6
    assert differences(before, fingerprint(model, hashing="exact")) == {
        "weights": "model.norm.weight"
    }
    packed = load(str(tiny), quantisation="nf4").model
    before = fingerprint(packed, hashing="exact")
    layer = next(iter(quantised_layers(packed).values()))
    layer.codes[0] ^= 1
    assert "codes" in differences(before, fingerprint(packed, hashing="exact"))["weights"]


def edited(tokenizer: Any, path, edit) -> Any:
    tokenizer.save_pretrained(path)
    file = path / "tokenizer.json"
    said = json.loads(file.read_text())
    edit(said)
    file.write_text(json.dumps(said))
    return AutoTokenizer.from_pretrained(path)


def swap_ids(said: dict) -> None:
    vocabulary = said["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


@pytest.mark.parametrize(
    "edit, part",
    [
        (swap_ids, "model"),
        (lambda said: said["model"]["merges"].pop(), "model"),
        (lambda said: said.update(normalizer={"type": "Lowercase"}), "normalizer"),
        (lambda said: said.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (lambda said: said.update(decoder=None), "decoder"),
        (lambda said: said["added_tokens"][0].update(lstrip=True), "added_tokens"),
    ],
    ids=["ids", "merges", "normalizer", "pre-tokenizer", "decoder", "added token"],
)
def test_an_edited_tokenizer_is_refused_by_its_part(tiny, adapter, tmp_path, edit, part):
    tokenizer = edited(load_tokenizer(str(tiny)), tmp_path / "text", edit)
    with pytest.raises(BaseError, match=rf"other_tokenizer .*{part}"):
        lorica.load(load(str(tiny)).model, adapter, tokenizer=tokenizer)


def test_what_a_call_leaves_behind_and_the_pad_token_are_no_part_of_a_tokenizer():
    tokenizer = load_tokenizer("bundled")
    before = tokenizer_parts(tokenizer)
    tokenizer(["a", "bb cc"], padding=True, truncation=True, max_length=3)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_parts(tokenizer) == before


def test_an_adapter_of_an_earlier_version_opens_by_what_it_has(tiny, adapter, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("config", "weights", "hashing", "tokenizer_parts"):
        del manifest["base"][key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    base = load(str(tiny))
    (line,) = lorica.load(base.model, folder, tokenizer=base.tokenizer)
    assert "earlier lorica" in line
    wrong = load(str(tiny)).model
    with torch.no_grad():
        wrong.model.embed_tokens.weight.mul_(2)
    with pytest.raises(BaseError, match="same shapes"):
        lorica.load(wrong, folder)


def test_a_newer_library_may_know_more_fields_than_an_older_one():
    one = computing_fields(AutoModelForCausalLM.from_config(CONFIGS["llama"])) or {}
    two = {**one, "a_new_field": 3}
    assert changed_fields(one, two) == {"a_new_field": "None -> 3"}
    assert changed_fields(one, {**two, "transformers_version": "99.0"}) == {}
    assert changed_fields(
        one, {**two, "transformers_version": "99.0", "rms_norm_eps": 1.0}
    ).keys() == {"rms_norm_eps"}
