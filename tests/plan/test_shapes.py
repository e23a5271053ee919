"""The sizes of a base from its config.json, against transformers and against written arithmetic."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lorica.base.bundled import FOLDER
from lorica.core.site import sites_of, tied
from lorica.errors import BaseError, FileError
from lorica.plan.families import FAMILIES
from lorica.plan.headers import sites_in, weight_tensors
from lorica.plan.shapes import read_shapes
from tests import small_base

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
KINDS = ("linear", "embedding", "other", "attention", "decoder")


def write(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def own_parameters(site):
    if site.kind in ("attention", "decoder"):
        return 0
    return sum(p.numel() for p in site.module._parameters.values() if p is not None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("biases", [False, True])
def test_the_layers_are_those_that_transformers_builds(tmp_path, family, biases):
    sizes = GPT2 if family == "gpt2" else {**SMALL, "attention_bias": biases, "mlp_bias": biases}
    config = AutoConfig.for_model(family, **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = read_shapes(str(tmp_path))
    real = [
        (s.name, s.kind, s.in_features, s.out_features, own_parameters(s), s.is_head)
        for s in sites_of(model, KINDS)
    ]
    ours = [(s.name, s.kind, s.inputs, s.outputs, s.parameters, s.is_head) for s in shapes.sites]
    assert ours == real
    assert shapes.tied == bool(tied(model))
    assert shapes.parameters == sum(p.numel() for p in model.parameters())


def test_llama_7b_13b_and_70b(tmp_path):
    """2 V C + C + L (2 C + 2 C C + 2 C K + 3 C F), K the width of keys."""
    vocabulary = 32_000
    sizes = {
        "7b": (4096, 11008, 32, 32, 32, 6_738_415_616),
        "13b": (5120, 13824, 40, 40, 40, 13_015_864_320),
        "70b": (8192, 28672, 80, 64, 8, 68_976_648_192),
    }
    for name, (c, f, layers, heads, kv_heads, published) in sizes.items():
        (tmp_path / name).mkdir()
        base = write(
            tmp_path / name,
            model_type="llama",
            hidden_size=c,
            intermediate_size=f,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
        )
        keys = c // heads * kv_heads
        block = 2 * c + 2 * c * c + 2 * c * keys + 3 * c * f
        shapes = read_shapes(base)
        assert shapes.parameters == 2 * vocabulary * c + c + layers * block == published
        assert shapes.bytes_of("bfloat16") == 2 * published
        packed = layers * (block - 2 * c)
        dense = published - packed
        in_nf4 = 2 * dense + packed * (4 + 8 / 64 + 32 / (64 * 256)) / 8
        assert shapes.bytes_of("bfloat16", "nf4") == pytest.approx(in_nf4, rel=1e-9)
        assert shapes.bytes_of("bfloat16", "nf4", double=False) == 2 * dense + packed * 4.5 / 8


@pytest.mark.parametrize(
    ("family", "sizes", "published"),  # C, F, layers, heads, key heads, head size, V
    [
        ("mistral", (4096, 14336, 32, 32, 8, 128, 32000), 7_241_732_096),  # 7B v0.1
        ("qwen2", (3584, 18944, 28, 28, 4, 128, 152064), 7_615_616_512),  # 2.5 7B
        ("qwen3", (4096, 12288, 36, 32, 8, 128, 151936), 8_190_735_360),  # 8B
        ("gemma", (2048, 16384, 18, 8, 1, 256, 256000), 2_506_172_416),  # 2B
    ],
)
def test_published_sizes(tmp_path, family, sizes, published):
    config = dict(zip(["hidden_size", *list(SMALL)[1:]], sizes, strict=True))
    assert read_shapes(write(tmp_path, model_type=family, **config)).parameters == published


def test_gpt2_small(tmp_path):
    """(V + P + 2) C + L (12 C C + 13 C), the published 124 M."""
    base = write(tmp_path, model_type="gpt2", n_embd=768, n_layer=12, n_head=12, vocab_size=50257)
    blocks = 12 * (12 * 768 * 768 + 13 * 768)
    assert read_shapes(base).parameters == (50257 + 1024 + 2) * 768 + blocks == 124_439_808


def test_a_known_architecture_and_the_headers_of_its_weights_agree():
    shapes = read_shapes("bundled")
    in_files = {s.name: s for s in sites_in(weight_tensors(FOLDER))}
    for site in shapes.sites:
        if not site.is_head:  # it is tied, and not in the file
            own = in_files[site.name]
            assert (own.kind, own.inputs, own.outputs, own.layer, own.parameters) == (
                site.kind,
                site.inputs,
                site.outputs,
                site.layer,
                site.parameters,
            )


def test_an_unknown_architecture_is_read_from_its_weights(tmp_path):
    config = json.loads((FOLDER / "config.json").read_text())
    for file in FOLDER.glob("[mt]*[ns]"):
        (tmp_path / file.name).symlink_to(file)
    base = write(tmp_path, **{**config, "model_type": "lama"})
    shapes = read_shapes(base)
    assert shapes.parameters == read_shapes("bundled").parameters
    assert "layers of this lama model are read from its weights" in shapes.notices[0]


def test_weights_with_more_parts_than_the_architecture_are_read_themselves(tmp_path):
    """As those of a model of text and images, whose config names its language model."""
    from safetensors.numpy import save_file

    weights = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    for name, (out, inputs) in {"self_attn.q_proj": (32, 32), "mlp.up_proj": (48, 32)}.items():
        weights[f"model.layers.0.{name}.weight"] = (out, inputs)
    weights["vision.blocks.0.proj.weight"] = (128, 128)
    tensors = {name: np.zeros(shape, np.float16) for name, shape in weights.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    base = write(tmp_path, model_type="llama", **{**SMALL, "num_hidden_layers": 1})
    shapes = read_shapes(base)
    assert shapes.parameters == sum(t.size for t in tensors.values())
    assert [s.name for s in shapes.sites if s.kind == "attention"] == ["model.layers.0.self_attn"]


def test_masks_in_old_checkpoints_are_no_parameters(tmp_path):
    from safetensors.numpy import save_file

    mask = {"h.0.attn.bias": np.zeros((1, 1, 8, 8), np.float32)}
    save_file({**mask, "wte.weight": np.zeros((4, 2), np.float32)}, tmp_path / "m.safetensors")
    assert weight_tensors(tmp_path) == {"wte.weight": (4, 2)}


def test_of_the_hub_only_config_and_tokenizer_are_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    from lorica.base import hub

    asked = []

    def download(repo, name):
        asked.append((repo, name))
        if name == "chat_template.jinja":
            raise OSError("404")
        return str(tmp_path / name)

    write(tmp_path, model_type="llama", **SMALL)
    monkeypatch.setattr(hub, "reachable_or_cached", lambda repo: repo)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_shapes("acme/some-llama").hidden == 32
    assert {name for _, name in asked} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_a_model_that_the_hub_does_not_give(monkeypatch):
    import huggingface_hub

    from lorica.base import hub

    def refuse(repo, name):
        raise OSError("401 Client Error: it is gated\nmore")

    monkeypatch.setattr(hub, "reachable_or_cached", lambda repo: repo)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(BaseError, match="the hub does not give config") as raised:
        read_shapes("acme/gated")
    assert raised.value.facts["why"] == "401 Client Error: it is gated"


def test_an_unknown_architecture_without_weights_is_refused_by_name(tmp_path):
    base = write(tmp_path, model_type="lama", hidden_size=8)
    with pytest.raises(BaseError, match="is a lama model, whose layers are not known"):
        read_shapes(base)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_type": "llama", "hidden_size": "8"}', "states"),
        ('{"model_type": "llama"', "cannot be read"),
        ("[]", "not an object"),
    ],
)
def test_a_broken_config_is_refused(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((BaseError, FileError), match=words):
        read_shapes(str(tmp_path))


def test_a_folder_that_is_no_base_is_refused(tmp_path):
    with pytest.raises(BaseError, match=r"no config\.json"):
        read_shapes(str(tmp_path))
    with pytest.raises(BaseError, match="there is no folder"):
        read_shapes(str(tmp_path / "none"))


def test_weights_that_are_no_floats_are_refused(tmp_path):
    folder = small_base.write(tmp_path / "base")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "extra.table": torch.arange(3)}, path, {"format": "pt"})
    assert read_shapes(str(folder)).layers == 2
    read_shapes.cache_clear()
    save_file({**tensors, "model.norm.weight": torch.arange(32)}, path, {"format": "pt"})
    with pytest.raises(BaseError, match="not floats"):
        read_shapes(str(folder))
