"""LoRA adapters as GGUF: every tensor read back, and what has no place refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from benchmarks.runtimes import tiny_models
from lorica import Dora, Lora
from lorica.base.load import load as load_base
from lorica.core.bank import adapted_layers
from lorica.errors import BaseError, FileError, MergeError, ResourceError
from lorica.formats.save import save
from lorica.handover.gguf.lora import write_lora
from tests.handover.gguf.read_back import read, rows_in_order
from tests.laws.bases import move

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """Folders of tiny models by name, written once."""
    folders: dict[str, Path] = {}

    def folder(name):
        if name not in folders:
            folders[name] = tiny_models.write(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


def adapted(base, method, folder, **targets):
    """A model with a moved adapter, saved in `folder`."""
    opened = load_base(str(base))
    model = move(lorica.adapt(opened.model, method, **targets))
    save(model, folder, "default", tokenizer=opened.tokenizer, base_path=str(base))
    return model


CASES = {
    "plain": (Lora(r=4, alpha=4), {}),
    "scale": (Lora(r=4, alpha=5), {}),
    "rslora": (Lora(r=4, alpha=8, use_rslora=True), {}),
    "pissa": (Lora(r=3, alpha=5, init="pissa"), {}),
    "patterns": (
        Lora(r=4),
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_tensor_is_the_update_with_its_scale(case, base_of, tmp_path):
    method, targets = CASES[case]
    targets = {"target_modules": LINEARS, **targets}
    model = adapted(base_of("llama"), method, tmp_path / "a", **targets)
    notices = write_lora(tmp_path / "a", str(base_of("llama")), tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["general.architecture"] == "llama" and fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora" and fields["adapter.lora.alpha"] == 0
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    count = 0
    for site, _, adapters in adapted_layers(model):
        leaf, block = site.rpartition(".")[2], site.split(".")[2]
        a, b = (tensors.pop(f"blk.{block}.{names[leaf]}.weight.lora_{x}") for x in "ab")
        if leaf in ("q_proj", "k_proj"):
            b = rows_in_order(b, {"q_proj": 4, "k_proj": 2}[leaf])
        want_a, want_b = adapters["default"].factors()
        torch.testing.assert_close(
            torch.from_numpy(b @ a), (want_b @ want_a).detach(), atol=1e-6, rtol=1e-5
        )
        count += 1
    assert not tensors and count == 21
    assert "21 layers" in notices[0]


def test_conv1d_layers_of_gpt2_are_as_linear_ones(base_of, tmp_path):
    model = adapted(base_of("gpt2"), Lora(r=4), tmp_path / "a", target_modules=["c_attn", "c_proj"])
    write_lora(tmp_path / "a", str(base_of("gpt2")), tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["general.architecture"] == "gpt2" and len(tensors) == 12
    adapters = {site: own["default"] for site, _, own in adapted_layers(model)}
    a, b = (tensors[f"blk.1.attn_qkv.weight.lora_{x}"] for x in "ab")
    want_a, want_b = adapters["transformer.h.1.attn.c_attn"].factors()
    torch.testing.assert_close(torch.from_numpy(b @ a), (want_b @ want_a).detach())
    assert a.shape == (4, 64) and b.shape == (192, 4)


def test_embedding_and_head_of_an_untied_base(base_of, tmp_path):
    targets = {"target_modules": ["embed_tokens", "lm_head"]}
    model = adapted(base_of("qwen2"), Lora(r=4, alpha=6), tmp_path / "a", **targets)
    write_lora(tmp_path / "a", str(base_of("qwen2")), tmp_path / "a.gguf")
    _, tensors = read(tmp_path / "a.gguf")
    adapters = {site: own["default"] for site, _, own in adapted_layers(model)}
    want = {site: (a.factors()[1] @ a.factors()[0]).detach() for site, a in adapters.items()}
    a, b = (tensors[f"token_embd.weight.lora_{x}"] for x in "ab")
    assert a.shape == (448, 4) and b.shape == (64, 4)  # the lookup's A stands transposed
    torch.testing.assert_close(torch.from_numpy(b @ a.T), want["model.embed_tokens"])
    a, b = (tensors[f"output.weight.lora_{x}"] for x in "ab")
    torch.testing.assert_close(torch.from_numpy(b @ a), want["lm_head"])


REFUSED = {
    "norms": ("llama", Lora(r=2), {"modules_to_save": ["norm"]}, "no place"),
    "rows": ("llama", Lora(r=2), {"trainable_token_indices": [5]}, "no place"),
    "bias": ("llama", Lora(r=2, lora_bias=True), {}, "no place"),
    "dora": ("llama", Dora(r=2), {}, "dora adapter, not a plain LoRA"),
    "tied head": ("qwen3", Lora(r=2), {"target_modules": ["lm_head"]}, "one matrix"),
    "tied table": ("gpt2", Lora(r=2), {"target_modules": ["wte"]}, "one matrix"),
    "positions": ("gpt2", Lora(r=2), {"target_modules": ["wpe"]}, "no place.*these layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_has_no_place_for_is_refused(case, base_of, tmp_path):
    name, method, targets, reason = REFUSED[case]
    targets = {"target_modules": ["q_proj"], **targets}
    adapted(base_of(name), method, tmp_path / "a", **targets)
    with pytest.raises(MergeError, match=f"(?is){reason}") as error:
        write_lora(tmp_path / "a", str(base_of(name)), tmp_path / "a.gguf")
    assert "lorica merge" in str(error.value.fix)
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".staging*"))


def test_other_architectures_are_refused_by_name(base_of, tmp_path):
    adapted(base_of("llama"), Lora(r=2), tmp_path / "a", target_modules=["q_proj"])
    config = json.loads((base_of("llama") / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for file in base_of("llama").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseError, match="Phi3ForCausalLM"):
        write_lora(tmp_path / "a", str(other), tmp_path / "a.gguf")


def test_a_file_is_not_replaced_and_a_damaged_folder_is_not_written(base_of, tmp_path):
    base = str(base_of("llama"))
    adapted(base_of("llama"), Lora(r=2), tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(ResourceError, match="already"):
        write_lora(tmp_path / "a", base, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(FileError):
        write_lora(tmp_path / "a", base, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


def edited(folder, change):
    """Change the tensors of a PEFT folder, without a manifest. In place."""
    (folder / "manifest.json").unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_adapters_that_do_not_fit_the_base(base_of, tmp_path):
    base, prefix = str(base_of("llama")), "base_model.model.model.layers."
    adapted(base_of("llama"), Lora(r=2), tmp_path / "a", target_modules=["q_proj"])
    with pytest.raises(BaseError, match="another base"):
        write_lora(tmp_path / "a", str(base_of("qwen2")), tmp_path / "a.gguf")

    def rename(tensors):
        for key in [key for key in tensors if key.startswith(f"{prefix}2.")]:
            tensors[key.replace("layers.2.", "layers.9.")] = tensors.pop(key)

    edited(tmp_path / "a", rename)
    with pytest.raises(MergeError, match=r"(?s)no place.*layers\.9\.self_attn\.q_proj"):
        write_lora(tmp_path / "a", base, tmp_path / "a.gguf")


def test_numbers_that_are_not_finite_and_halves_of_a_pair(base_of, tmp_path):
    base, key = str(base_of("llama")), "base_model.model.model.layers.1.self_attn.q_proj.lora_B"
    adapted(base_of("llama"), Lora(r=2), tmp_path / "a", target_modules=["q_proj"])
    edited(tmp_path / "a", lambda tensors: tensors[f"{key}.weight"].fill_(torch.nan))
    with pytest.raises(MergeError, match="not finite"):
        write_lora(tmp_path / "a", base, tmp_path / "a.gguf")
    adapted(base_of("llama"), Lora(r=2), tmp_path / "b", target_modules=["q_proj"])
    edited(tmp_path / "b", lambda tensors: tensors.pop(f"{key}.weight"))
    with pytest.raises(FileError, match="lacks A or B"):
        write_lora(tmp_path / "b", base, tmp_path / "b.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".staging*"))


def test_a_template_of_the_adapter_is_a_notice(base_of, tmp_path):
    adapted(base_of("llama"), Lora(r=2), tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    notices = write_lora(tmp_path / "a", str(base_of("llama")), tmp_path / "a.gguf")
    assert "--chat-template-file chat_template.jinja" in notices[1]
