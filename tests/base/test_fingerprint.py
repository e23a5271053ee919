"""What a base is, in a few hashes, and how far another one is the same."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.fingerprint import fingerprint, grade
from lorica.base.load import load
from lorica.base.samples import places
from lorica.core.bank import adapted_layers
from lorica.errors import BaseError
from tests.laws.bases import CASES, IDS, Packed, Stack, gpt2, move, small_llama, trained

STACK = CASES[0]


def perturbed() -> nn.Module:
    model = Stack()
    with torch.no_grad():
        model.layers[1]["up"].weight.mul_(1.05)
    return model


def wider() -> nn.Module:
    model = Stack()
    model.layers[0]["up"] = nn.Linear(12, 21)
    model.layers[0]["down"] = nn.Linear(21, 12)
    return model


def quantised() -> nn.Module:
    """As transformers does it: packed linears, the rest as it was, and a note in the config."""
    model = gpt2()
    for block in model.transformer.h:
        dense = nn.Linear(32, 96)
        with torch.no_grad():
            dense.weight.copy_(block.attn.c_attn.weight.T)
            dense.bias.copy_(block.attn.c_attn.bias)
        block.attn.c_attn = Packed(dense)
    model.config.quantization_config = {"quant_method": "packed"}
    return model


@pytest.fixture
def folder(tmp_path):
    return lorica.save(trained("lora", STACK), tmp_path / "adapter")


def test_the_same_base_is_the_same():
    assert grade(fingerprint(small_llama()), fingerprint(small_llama())) == "same"


def test_an_adapter_is_no_part_of_its_base():
    want = fingerprint(small_llama())
    model = move(lorica.adapt(small_llama(), Lora(), trainable_token_indices=[3]))
    assert fingerprint(model) == want
    assert fingerprint(lorica.detach(model)) == want


def test_the_dtype_does_not_matter(story_base):
    one, two = (load(str(story_base), dtype=dtype).model for dtype in ("float32", "bfloat16"))
    assert grade(fingerprint(one), fingerprint(two)) == "same"


def test_an_adapter_of_float32_loads_on_the_base_in_bfloat16(tmp_path, story_base):
    path = lorica.save(
        move(lorica.adapt(load(str(story_base)).model, Lora())), tmp_path / "adapter"
    )
    model = load(str(story_base), dtype="bfloat16").model
    assert lorica.load(model, path) == []
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("base, verdict", [(perturbed, "same shapes"), (wider, "different")])
def test_another_base_is_refused_and_graded(base, verdict, folder):
    model = base()
    with pytest.raises(BaseError, match=verdict) as error:
        lorica.load(model, folder)
    assert verdict in (error.value.fix or "")
    assert not list(adapted_layers(model))
    assert torch.equal(STACK.run(model), STACK.run(base())) or base is wider


def test_what_is_allowed_is_allowed_and_said(folder):
    (line,) = lorica.load(perturbed(), folder, allow_base="same shapes")
    assert "same shapes" in line
    lorica.load(perturbed(), folder, allow_base="different")
    with pytest.raises(BaseError):
        lorica.load(perturbed(), folder, allow_base="same but quantised")


def test_one_weight_in_a_norm_is_another_base():
    model = small_llama()
    with torch.no_grad():
        model.model.norm.weight[7] += 0.5
    assert grade(fingerprint(small_llama()), fingerprint(model)) == "same shapes"


def test_a_quantised_base_is_graded_so():
    plain = gpt2()
    before, now = fingerprint(plain), fingerprint(quantised())
    assert before.linear != now.linear
    assert grade(before, now) == "same but quantised"
    other = quantised()
    with torch.no_grad():
        other.transformer.ln_f.weight.mul_(2)
    assert grade(before, fingerprint(other)) == "same shapes"


def test_a_fresh_classifier_head_is_no_part_of_the_base(story_base):
    labels = ["good", "bad"]
    model = load(str(story_base), labels=labels).model
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.score.weight.add_(1)
    assert grade(fingerprint(model), fingerprint(other)) == "same"


@pytest.mark.parametrize("n", [0, 1, 5, 64, 65, 4096 * 4096, 2**27, 2**31 + 3])
def test_a_tensor_is_sampled_from_its_first_value_to_its_last(n):
    at = places(n).tolist()
    assert len(set(at)) == len(at) == min(n, 64)
    assert not n or at[-1] == n - 1
    assert not n or at[0] == 0
    assert at == sorted(at)


def test_tokenizer_and_template_enter_when_given(story_base):
    base = load(str(story_base))
    plain = fingerprint(base.model)
    assert (plain.tokenizer, plain.chat_template) == (None, None)
    with_text = fingerprint(base.model, tokenizer=base.tokenizer)
    base.tokenizer.chat_template = "{{ messages }}"
    assert fingerprint(base.model, tokenizer=base.tokenizer).tokenizer == with_text.tokenizer
    assert fingerprint(base.model, tokenizer=base.tokenizer).chat_template
    base.tokenizer.add_tokens(["<new>"])
    assert fingerprint(base.model, tokenizer=base.tokenizer).tokenizer != with_text.tokenizer


def test_another_template_is_named(tmp_path, story_base):
    base = load(str(story_base))
    base.tokenizer.chat_template = "{{ messages }}"
    lorica.adapt(base.model, Lora())
    path = lorica.save(base.model, tmp_path / "adapter", tokenizer=base.tokenizer)
    again = load(str(story_base))
    assert lorica.load(load(str(story_base)).model, path, tokenizer=base.tokenizer) == []
    (line,) = lorica.load(again.model, path, tokenizer=again.tokenizer)
    assert "chat template" in line
