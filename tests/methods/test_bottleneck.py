"""Bottleneck adapters: what they compute, where they stand, and the norms beside them."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

import lorica
from lorica.core.bank import adapted_layers, attached
from lorica.core.modules_to_save import ModuleCopy
from lorica.errors import ConfigError, MergeError, TargetError
from lorica.methods.bottleneck import Bottleneck, BottleneckAdapter
from tests.core.attention_models import MODELS, SIZE, foreign, tiny
from tests.laws.bases import IDS, Stack, X, gpt2, move
from tests.methods.llama import llama
from tests.training.rows import ROUNDING, farthest, settings
from tests.training.rows import adapter as tensors_of

PLAIN = {k: v for k, v in SIZE.items() if "token_id" not in k}


def adapters(model: nn.Module) -> dict[str, BottleneckAdapter]:
    found = attached(model, "default").adapters
    assert all(isinstance(a, BottleneckAdapter) for a in found.values())
    return found  # type: ignore[return-value]


def one(width: int = 3, **changed: object) -> tuple[nn.Module, BottleneckAdapter]:
    model = nn.Sequential(nn.Linear(2, width))
    lorica.adapt(model, Bottleneck(**{"r": 2, **changed}), target_modules=["0"])
    (adapter,) = adapters(model).values()
    return model, adapter


def test_by_hand():
    """h + Wu gelu(Wd h + bd) + bu; gelu(1) = 0.8413447, gelu(-2) = -0.0455003."""
    model, adapter = one(width=2)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
        adapter.down.weight.copy_(torch.tensor([[1.0, -1], [0, -1]]))
        adapter.down.bias.copy_(torch.tensor([0.0, 1]))
        adapter.up.weight.copy_(torch.tensor([[2.0, 0], [1, 10]]))
        adapter.up.bias.copy_(torch.tensor([0.0, 5]))
    got = model(torch.tensor([4.0, 3]))  # down: (1, -2)
    want = [4 + 2 * 0.8413447, 3 + 0.8413447 - 0.455003 + 5]
    assert got.tolist() == pytest.approx(want, abs=1e-5)


def test_starts():
    std = 1e-3
    _, paper = one(width=400, r=100, zero_up=False)
    for layer in (paper.down, paper.up):
        weight = layer.weight
        assert weight.abs().max() <= 2 * std
        assert abs(weight.std() / std - 0.8796) < 0.02  # of a normal that is cut at two std
        assert not layer.bias.any()
    _, ours = one(width=400, r=100)
    assert abs(ours.down.weight.std() / std - 0.8796) < 0.02
    assert not ours.up.weight.any() and not ours.up.bias.any() and not ours.down.bias.any()


@pytest.mark.parametrize("base", [b for b in MODELS if b != "GptOss"])
def test_a_start_of_zero_is_the_base_and_the_papers_is_near_it(base):
    plain = tiny(base)(IDS).logits
    assert torch.equal(lorica.adapt(tiny(base), Bottleneck(r=8))(IDS).logits, plain)
    near = lorica.adapt(tiny(base), Bottleneck(r=8, zero_up=False))(IDS).logits
    assert 0 < (near - plain).abs().max() < 1e-3


def test_the_first_step_moves_up_alone_from_zero():
    model = lorica.adapt(llama(), Bottleneck(r=8))
    model(IDS, labels=IDS).loss.backward()
    for adapter in adapters(model).values():
        assert not adapter.down.weight.grad.any() and not adapter.down.bias.grad.any()
        assert adapter.up.weight.grad.any() and adapter.up.bias.grad.any()
    model = lorica.adapt(llama(), Bottleneck(r=8, zero_up=False))
    model(IDS, labels=IDS).loss.backward()
    for adapter in adapters(model).values():
        assert all(p.grad.any() for p in adapter.parameters())


def test_counts():
    def count(d: int, m: int) -> int:
        return 2 * (2 * d * m + d + m)

    assert count(768, 64) == 198_272
    assert 12 * count(768, 64) == 2_379_264
    model = lorica.adapt(llama(), Bottleneck(r=16))
    assert lorica.trainable_parameters(model).trainable == 5 * count(64, 16)
    model = lorica.adapt(llama(), Bottleneck(r=16, placement="pfeiffer"))
    assert lorica.trainable_parameters(model).trainable == 5 * count(64, 16) // 2


BERT = ("BertForMaskedLM", "BertConfig", PLAIN)
PHI3 = ("Phi3ForCausalLM", "Phi3Config", {**PLAIN, "pad_token_id": 0})
OPT = ("OPTForCausalLM", "OPTConfig", {**PLAIN, "ffn_dim": 32, "word_embed_proj_dim": 32})
T5 = (
    "T5ForConditionalGeneration",
    "T5Config",
    {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
)
DISTIL = (
    "DistilBertForMaskedLM",
    "DistilBertConfig",
    {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4},
)


@pytest.mark.parametrize(
    "make, attention, feed_forward",
    [
        (llama, "self_attn.o_proj", "mlp.down_proj"),
        (gpt2, "attn.c_proj", "mlp.c_proj"),
        (lambda: tiny("GPTNeoX"), "attention.dense", "mlp.dense_4h_to_h"),
        (lambda: tiny("Qwen3"), "self_attn.o_proj", "mlp.down_proj"),
        (lambda: foreign(*BERT[:2], **BERT[2]), "attention.output.dense", "output.dense"),
        (lambda: foreign(*PHI3[:2], **PHI3[2]), "self_attn.o_proj", "mlp.down_proj"),
        (lambda: foreign(*OPT[:2], **OPT[2]), "self_attn.out_proj", "fc2"),
        (lambda: foreign(*DISTIL[:2], **DISTIL[2]), "attention.out_lin", "ffn.lin2"),
    ],
    ids=["llama", "gpt2", "neox", "qwen3", "bert", "phi3", "opt", "distilbert"],
)
def test_where_they_stand(make, attention, feed_forward):
    model = make()
    blocks = [
        n.removesuffix(f".{attention}")
        for n, _ in model.named_modules()
        if n.endswith(f".{attention}")
    ]
    assert len(blocks) == model.config.num_hidden_layers
    want = [f"{block}.{leaf}" for block in blocks for leaf in (attention, feed_forward)]
    assert sorted(adapters(lorica.adapt(model, Bottleneck(r=2)))) == sorted(want)
    below = lorica.adapt(make(), Bottleneck(r=2, placement="pfeiffer"))
    assert list(adapters(below)) == want[1::2]


def test_blocks_with_cross_attention():
    model = lorica.adapt(foreign(*T5[:2], **T5[2]), Bottleneck(r=2))
    assert list(adapters(model)) == [
        "encoder.block.0.layer.0.SelfAttention.o",
        "encoder.block.0.layer.1.DenseReluDense.wo",
        "decoder.block.0.layer.0.SelfAttention.o",
        "decoder.block.0.layer.1.EncDecAttention.o",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ]


def test_blocks_that_do_not_look_so_are_refused():
    for model in (
        tiny("GptOss"),  # its experts are no linear layers
        foreign(
            "MixtralForCausalLM",
            "MixtralConfig",
            **PLAIN,
            num_key_value_heads=2,
            num_local_experts=2,
        ),
        foreign(
            "Qwen2MoeForCausalLM",
            "Qwen2MoeConfig",
            **PLAIN,
            num_key_value_heads=2,
            num_experts=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
    ):
        with pytest.raises(TargetError, match="no feed-forward layer") as error:
            lorica.adapt(model, Bottleneck())
        assert "target_modules" in error.value.fix
        lorica.adapt(model, Bottleneck(r=2), target_modules=["o_proj"])
        assert len(adapters(model)) == model.config.num_hidden_layers
    with pytest.raises(TargetError, match="no numbered blocks"):
        lorica.adapt(nn.Sequential(nn.Linear(3, 3)), Bottleneck())
    model = lorica.adapt(Stack(), Bottleneck(r=2))  # no attention is no mistake
    assert list(adapters(model)) == ["layers.0.down", "layers.1.down"]


def test_norms_are_trained_as_the_paper_does(tmp_path):
    base = llama()
    want = base(IDS).logits
    model = lorica.adapt(base, Bottleneck(r=4, train_norms=True))
    assert torch.equal(model(IDS).logits, want)
    norms = [
        n
        for n, _, layer_adapters in adapted_layers(model)
        if isinstance(layer_adapters["default"], ModuleCopy)
    ]
    assert len(norms) == 11 and all("norm" in name for name in norms)
    assert len(adapters(model)) == 10
    count = 10 * (2 * 64 * 4 + 64 + 4) + 11 * 64
    assert lorica.trainable_parameters(model).trainable == count
    move(model)
    lorica.save(model, tmp_path / "adapter")
    fresh = llama()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    lorica.detach(model)
    assert torch.equal(model(IDS).logits, want)
    made = TypeAdapter(Bottleneck).validate_python({"train_norms": True})
    assert (made.kinds, Bottleneck().kinds) == (("linear", "other"), ("linear",))
    with pytest.raises(ConfigError, match="names no norm"):
        lorica.adapt(llama(), Bottleneck(train_norms=True), target_modules=["o_proj"])
    named = {"target_modules": ["o_proj", "input_layernorm"]}
    model = lorica.adapt(llama(), Bottleneck(r=2, train_norms=True), **named)
    assert len(list(adapted_layers(model))) == 10


def test_the_width_can_differ_from_layer_to_layer():
    model = lorica.adapt(Stack(), Bottleneck(r=4), rank_pattern={"layers.1.down": 2})
    assert [len(a.down.bias) for a in adapters(model).values()] == [4, 2]


def test_it_is_no_linear_map():
    model = move(lorica.adapt(Stack(), Bottleneck(r=4)), size=0.5)
    with torch.no_grad():
        layer, x = model.layers[0]["down"], torch.randn(6, 20)
        curve = layer(x) + layer(-x) - 2 * layer(torch.zeros(20))
        assert curve.abs().max() > 1e-2
    with pytest.raises(MergeError, match="not affine"):
        lorica.merge(model)
    assert model(X).isfinite().all()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "bottleneck.r is 0"),
        ({"r": 1.5}, "bottleneck.r is 1.5"),
        ({"placement": "houlsbi"}, "placement is 'houlsbi'"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Bottleneck(**settings)
    assert error.value.fix


@pytest.mark.slow
def test_training_packed_padded_and_checkpointed_is_one_update(small_base, tmp_path, monkeypatch):
    plain = {"learning_rate": 2e-4, "method": {"name": "bottleneck", "r": 4, "train_norms": True}}
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
