"""LLaMA-Adapter: the vectors of the specification, its layers and gates, and the second version."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

import lorica
from lorica.core.attention import PROJECTED, instrumented, project_qkv
from lorica.core.bank import adapted_layers, attached
from lorica.core.merge import evaluated
from lorica.core.modules_to_save import ModuleCopy
from lorica.core.site import sites_of
from lorica.errors import ConfigError, MergeError, TargetError
from lorica.methods.llama_adapter import LlamaAdapter, PromptedAttention, ScaleAndBias
from tests.core.attention_models import MODELS, tiny
from tests.laws.bases import IDS, Packed, gpt2, move
from tests.methods.llama import llama
from tests.training.rows import ROUNDING, farthest, settings
from tests.training.rows import adapter as tensors_of


def adapted(model: nn.Module, **settings) -> tuple[nn.Module, list[PromptedAttention]]:
    lorica.adapt(model, LlamaAdapter(**settings))
    found = attached(model, "default").adapters.values()
    return model, [a for a in found if isinstance(a, PromptedAttention)]


class Shown(nn.Module):
    """An attention layer of one head whose keys are its input's first number, and whose values
    are the rest of it."""

    def forward(self, x: torch.Tensor, **options: list) -> None:
        options[PROJECTED] += [x[:, None, :, :1], x[:, None, :, :1], x[:, None, :, 1:]]


def one_head(**settings) -> PromptedAttention:
    """Prompts with keys 0 and 1, whose values mark them; two tokens are marked in `mixed`."""
    _, (adapter, *_) = adapted(tiny("Llama"), **settings)
    adapter.layer = (Shown(),)  # type: ignore[assignment]
    adapter.p = nn.Parameter(torch.tensor([[0.0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]))
    adapter.g = nn.Parameter(torch.tensor([0.5]))
    return adapter


def test_one_head_by_hand():
    """Two softmaxes, the second through the gate: the weights are not renormalised."""
    adapter, query = one_head(), torch.ones(1, 1, 1, 1)
    mixed = torch.tensor([0.5, 0.5, 0, 0]).view(1, 1, 1, 4)  # token scores (1, 1)
    weights = adapter.attend(query, mixed, 1.0).flatten()
    torch.testing.assert_close(weights[:2], torch.tensor([0.5, 0.5]))
    assert weights[2:].tolist() == pytest.approx([0.13447, 0.36553], abs=5e-6)
    assert weights.sum().item() == pytest.approx(1.5)
    bounded = one_head(gate_act="tanh").attend(query, mixed, 1.0).flatten()
    torch.testing.assert_close(bounded[2:], weights[2:] * torch.tensor(0.5).tanh() / 0.5)
    half = adapter.attend(query, mixed, 0.0).flatten()
    assert half[2:].tolist() == [0.25, 0.25], "scores are multiplied by the scale of the layer"


@pytest.mark.parametrize("base", MODELS)
def test_a_gate_of_zero_is_the_base_bit_by_bit(base):
    model, _ = adapted(tiny(base), adapter_layers=3)
    assert torch.equal(model(IDS).logits, tiny(base)(IDS).logits)


def test_the_layer_by_the_definition():
    """Grouped queries, a norm of the keys, and queries that are rotated where prompts are not."""
    model, (adapter,) = adapted(tiny("Qwen3"), adapter_layers=1, adapter_len=3)
    move(model, size=0.3)
    layer = adapter.layer[0]
    q, mixed = (
        torch.randn(2, 4, 5, 12, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    )
    p = adapter.p.detach()
    keys = layer.k_norm(layer.k_proj(p).unflatten(-1, (2, 12))).transpose(0, 1)
    values = layer.v_proj(p).unflatten(-1, (2, 12)).transpose(0, 1)
    with torch.no_grad():
        model(IDS)
        with instrumented(layer):
            got = adapter.attend(q, mixed, 0.2)
        for head in range(4):
            scores = 0.2 * q[:, head] @ keys[head // 2].T
            seen = scores.softmax(-1) @ values[head // 2]
            want = mixed[:, head] + adapter.g[head] * seen
            torch.testing.assert_close(got[:, head], want)


def test_the_first_step_moves_the_gates_alone():
    model, adapters = adapted(llama())
    model(IDS, labels=IDS).loss.backward()
    for adapter in adapters:
        assert not adapter.p.grad.any(), "a prompt has no effect behind a gate of zero"
        assert (adapter.g.grad.abs() > 0).all()
    assert all(p.grad is None for n, p in model.named_parameters() if ".adapters." not in n)


def test_starts():
    _, (adapter, *_) = adapted(llama(), adapter_len=30)
    assert abs(adapter.p.std() - 1) < 0.05
    assert adapter.g.tolist() == [0.0] * 8
    assert adapter.p.dtype == adapter.g.dtype == torch.float32


def test_counts():
    from transformers import LlamaConfig, LlamaForCausalLM

    model, adapters = adapted(llama())
    assert len(adapters) == 3
    assert lorica.trainable_parameters(model).trainable == 3 * (10 * 64 + 8)
    with torch.device("meta"):
        large = LlamaForCausalLM(LlamaConfig())
    lorica.adapt(large, LlamaAdapter())
    assert lorica.trainable_parameters(large).trainable == 1_228_800 + 960


@pytest.mark.parametrize(
    "make, settings, want",
    [
        (llama, {}, [2, 3, 4]),
        (llama, {"adapter_layers": 2}, [3, 4]),
        (llama, {"adapter_layers": 5}, [0, 1, 2, 3, 4]),
        (gpt2, {}, [1]),
    ],
    ids=["llama", "top 2", "all", "gpt2"],
)
def test_which_layers(make, settings, want):
    model, adapters = adapted(make(), **settings)
    assert [a.layer[0].layer_idx for a in adapters] == want
    assert all(
        module is layer_adapters.acting_adapters()[0].layer[0]
        for _, module, layer_adapters in adapted_layers(model)
    )


def test_layers_that_are_named():
    model = lorica.adapt(llama(), LlamaAdapter(), layers_to_transform=[3])
    assert list(attached(model, "default").adapters) == ["model.layers.3.self_attn"]
    model = lorica.adapt(llama(), LlamaAdapter(), target_modules=["0.self_attn"])
    assert list(attached(model, "default").adapters) == ["model.layers.0.self_attn"]
    with pytest.raises(ConfigError, match="adapter_layers is 2, and the targets have 1"):
        lorica.adapt(llama(), LlamaAdapter(adapter_layers=2), layers_to_transform=[3])
    with pytest.raises(ConfigError, match="adapter_layers is 6, and the base has 5"):
        lorica.adapt(llama(), LlamaAdapter(adapter_layers=6))
    with pytest.raises(TargetError):
        lorica.adapt(llama(), LlamaAdapter(), target_modules=["q_proj"])


def test_prompts_see_a_lora_in_the_projections():
    """What a layer makes of its prompts is what the layer makes of them as it is now."""
    model, (adapter, *_) = adapted(llama())
    lorica.adapt(model, lorica.Lora(r=2), name="lora", target_modules=["v_proj"])
    lorica.activate(model, "default", "lora")
    move(model)
    layer, p = adapter.layer[0], adapter.p.detach()
    _, _, value = project_qkv(layer, p)
    torch.testing.assert_close(value[0].transpose(0, 1).flatten(1), layer.v_proj(p))


# -- the second version ---------------------------------------------------------------------


def second(model: nn.Module, **settings) -> nn.Module:
    return lorica.adapt(model, LlamaAdapter(v2=True, **settings))


def test_v2_trains_norms_scales_and_biases():
    base = llama()
    want = base(IDS).logits
    linear = {n: m for n, m in base.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    model = second(base)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-5)
    kinds: dict[str, list[str]] = {}
    for name, _, layer_adapters in adapted_layers(model):
        kinds.setdefault(type(layer_adapters.acting_adapters()[0]).__name__, []).append(name)
    assert kinds[ScaleAndBias.__name__] == list(linear)
    assert len(kinds[ModuleCopy.__name__]) == 11
    assert all("norm" in name for name in kinds[ModuleCopy.__name__])
    assert len(kinds[PromptedAttention.__name__]) == 3
    count = 3 * (10 * 64 + 8) + 11 * 64 + sum(2 * m.out_features for m in linear.values())
    assert lorica.trainable_parameters(model).trainable == count
    move(model)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("bias", [True, False])
def test_scale_and_bias_are_y_and_can_be_folded(bias):
    layer = nn.Linear(3, 2, bias=bias)
    model = nn.Sequential(layer)
    (site,) = sites_of(model)
    adapter = ScaleAndBias(site)
    adapter.scale.data.copy_(torch.tensor([2.0, -1]))
    adapter.bias.data.copy_(torch.tensor([0.5, 3]))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    y = layer(x).detach()
    got = adapter.after(x, y, layer)
    torch.testing.assert_close(got, torch.tensor([2.0, -1]) * (y + torch.tensor([0.5, 3])))
    weight, own = site.dense()
    closed, shift = adapter.merged(weight, own)
    torch.testing.assert_close(x @ closed.T + shift, got)
    for a, b in zip(evaluated(site, [adapter], weight, own), (closed, shift), strict=True):
        torch.testing.assert_close(a, b)
    assert ScaleAndBias.affine


def test_v2_on_a_packed_base():
    model = tiny("Llama")
    for block in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(block.mlp, name, Packed(getattr(block.mlp, name)))
    want = model(IDS).logits
    second(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-5)
    move(model)
    assert (model(IDS).logits - want).abs().max() > 1e-3


def test_v2_needs_all_its_kinds():
    for targets in ({"target_modules": ["self_attn"]}, {"target_modules": "all-linear"}):
        with pytest.raises(ConfigError, match="needs targets of kind"):
            lorica.adapt(llama(), LlamaAdapter(v2=True), **targets)


def test_v2_saved_and_loaded(tmp_path):
    model = move(second(llama(), gate_act="tanh"))
    lorica.save(model, tmp_path / "adapter")
    fresh = llama()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    kind = TypeAdapter(LlamaAdapter).validate_python({"v2": True})
    assert kind.kinds == ("attention", "linear", "other")
    assert LlamaAdapter().kinds == LlamaAdapter.kinds == ("attention",)
    with pytest.raises(MergeError, match="not affine"):
        lorica.merge(model)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"adapter_len": 0}, "adapter_len is 0"),
        ({"adapter_len": 1.5}, "adapter_len is 1.5"),
        ({"adapter_layers": 0}, "adapter_layers is 0"),
        ({"adapter_layers": -1}, "adapter_layers"),
        ({"gate_act": "tan"}, "gate_act is 'tan'"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        LlamaAdapter(**settings)
    assert error.value.fix


@pytest.mark.slow
@pytest.mark.parametrize("v2", [False, True])
def test_training_packed_padded_and_checkpointed_is_one_update(
    small_base, tmp_path, monkeypatch, v2
):
    plain = {"learning_rate": 2e-4, "method": {"name": "llama_adapter", "v2": v2}}
    runs = {}
    for name, extra in (
        ("packed", {}),
        ("again", {"gradient_checkpointing": True}),
        ("micro", {"micro_batch_size": 2, "gradient_accumulation_steps": 4}),
    ):
        config = settings(small_base, tmp_path / name, **plain, **extra)
        runs[name] = tensors_of(lorica.train(**config, show=False).folder)
    monkeypatch.setattr("lorica.base.packing.why_not_packed", lambda model: "it was told so")
    config = settings(small_base, tmp_path / "padded", **plain)
    runs["padded"] = tensors_of(lorica.train(**config, show=False).folder)
    for name in ("again", "micro", "padded"):
        assert farthest(runs["packed"], runs[name]) < ROUNDING
