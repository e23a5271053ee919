"""Merging in whole models: ties, types, layers that do more, and the files afterwards."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Full, Lora
from lorica.core.bank import adapted_layers
from lorica.errors import MergeError
from tests.laws.bases import IDS, Stack, X, bits, gpt2, move, same_bits, small_llama


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def untied() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=False,
            )
        ).eval()


def reloaded(model, folder) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


WHOLE = {
    "tied, linears": (small_llama, Lora(), {}),
    "tied, embedding": (small_llama, Lora(), {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, head": (small_llama, Dora(r=2), {"target_modules": ["lm_head"]}),
    "tied, tokens": (small_llama, Lora(), {"trainable_token_indices": [5, 17]}),
    "tied, head saved whole": (small_llama, Lora(), {"modules_to_save": ["lm_head"]}),
    "tied, all whole": (small_llama, Full(), {}),
    "untied, linears": (untied, Dora(r=4), {}),
    "untied, head": (untied, Lora(), {"target_modules": ["lm_head", "embed_tokens"]}),
    "untied, all whole": (untied, Full(), {}),
    "untied, norms whole": (untied, Lora(), {"modules_to_save": ["norm", "lm_head"]}),
    "gpt2, linears": (gpt2, Lora(lora_bias=True), {}),
    "gpt2, embedding": (gpt2, Lora(), {"target_modules": ["wte", "wpe", "c_attn"]}),
    "gpt2, all whole": (gpt2, Full(), {}),
}


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_a_merged_model_is_a_plain_model_on_disk(case, tmp_path):
    make, method, targets = WHOLE[case]
    model = move(lorica.adapt(make(), method, **targets))
    want = logits(model)
    lorica.merge(model)
    assert {type(m) for m in model.modules()} == {type(m) for m in make().modules()}
    torch.testing.assert_close(logits(model), want, atol=1e-4, rtol=1e-4)
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("moved, still", [("embed_tokens", "lm_head"), ("lm_head", "embed_tokens")])
def test_untying_is_named_and_the_other_stays(moved, still):
    model = move(lorica.adapt(small_llama(), Lora(), target_modules=[moved]))
    before = small_llama().lm_head.weight
    (line,) = lorica.merge(model)
    assert "untied" in line
    assert "embed_tokens.weight" in line
    assert "lm_head.weight" in line
    layers = {"embed_tokens": model.model.embed_tokens, "lm_head": model.lm_head}
    assert torch.equal(layers[still].weight, before)
    assert not torch.equal(layers[moved].weight, before)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize(
    "method, targets",
    [(Lora(), {"trainable_token_indices": [5, 17]}), (Full(), {}), (Lora(), {})],
    ids=str,
)
def test_what_changes_alike_stays_tied(method, targets):
    model = move(lorica.adapt(small_llama(), method, **targets))
    assert lorica.merge(model) == []
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def test_a_packed_layer_becomes_linear_and_the_others_stay_packed():
    model = Stack(packed=True)
    move(lorica.adapt(model, Lora(), target_modules=["up"]))
    want = model(X)
    lorica.merge(model)
    assert {type(layer["up"]) for layer in model.layers} == {nn.Linear}
    assert {type(layer["down"]).__name__ for layer in model.layers} == {"Packed"}
    torch.testing.assert_close(model(X), want, atol=2e-5, rtol=1e-4)


class Scaled(nn.Embedding):
    """An embedding that multiplies what it reads, as Gemma's does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 8


class Gated(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


class Words(nn.Module):
    def __init__(self, embedding: nn.Module, linear: nn.Module):
        super().__init__()
        self.plain, self.embedding, self.linear = nn.Linear(12, 12), embedding, linear

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.plain(self.embedding(ids)))


@pytest.mark.parametrize(
    "layer, model",
    [
        ("embedding", lambda: Words(Scaled(30, 12), nn.Linear(12, 6))),
        ("linear", lambda: Words(nn.Embedding(30, 12), Gated(12, 6))),
    ],
    ids=["scaled embedding", "gated linear"],
)
def test_a_layer_that_does_more_than_its_weight_is_refused_before_anything_is_written(layer, model):
    model = move(lorica.adapt(model(), Lora(), target_modules=["plain", layer]))
    before, want = bits(model), model(IDS[:, :4] % 30)
    with pytest.raises(MergeError, match=layer) as error:
        lorica.merge(model)
    assert error.value.fix
    assert same_bits(before, bits(model))
    assert torch.equal(model(IDS[:, :4] % 30), want)
    assert len(list(adapted_layers(model))) == 2


def test_there_must_be_something_to_merge():
    with pytest.raises(MergeError, match="no adapter is active"):
        lorica.merge(Stack())
    model = lorica.adapt(Stack(), Lora())
    lorica.activate(model)
    with pytest.raises(MergeError, match="no adapter is active"):
        lorica.merge(model)
    assert list(adapted_layers(model))


def test_merging_computes_in_float32_and_rounds_once():
    model = move(lorica.adapt(Stack().bfloat16(), Lora(r=2), target_modules=["up"]))
    layer = model.layers[0]["up"]
    adapter = layer.adapters["default"]
    want = layer.weight.float() + adapter.scale * adapter.b @ adapter.a
    lorica.merge(model)
    assert torch.equal(layer.weight, want.bfloat16())


def test_merging_gives_back_what_could_be_trained():
    model = Stack()
    model.layers[0]["up"].weight.requires_grad_(False)
    flags = [(n, p.requires_grad) for n, p in model.named_parameters()]
    lorica.merge(move(lorica.adapt(model, Lora())))
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == flags


def test_a_bias_where_the_layer_had_none_is_named():
    model = move(lorica.adapt(untied(), Lora(lora_bias=True), target_modules=["q_proj"]))
    want = logits(model)
    lines = lorica.merge(model)
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=1e-5)
    assert any("bias" in line and "q_proj" in line for line in lines), (
        "transformers loads no bias that the config does not know, and says nothing"
    )


def test_dropout_has_no_part_in_merging():
    model = move(lorica.adapt(Stack(), Lora(dropout=0.5)))
    want = model.eval()(X)
    lorica.merge(model.train())
    torch.testing.assert_close(model(X), want, atol=2e-5, rtol=1e-4)


def test_a_copy_can_be_merged_without_the_model():
    model = move(lorica.adapt(small_llama(), Lora()))
    want = logits(model)
    merged = copy.deepcopy(model)
    lorica.merge(merged)
    assert torch.equal(logits(model), want)
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=1e-4)
