"""HyperLoRA: conditions that are known, unknown, embeddings or texts; settings."""

import math

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.condition_texts import encode_conditions
from lorica.core.bank import attached
from lorica.core.condition import (
    set_conditions,
    swapped_conditions,
    unused_conditions,
    with_conditions,
)
from lorica.core.site import hidden_size_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, DataError
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import IDS, Stack, bits, move, same_bits
from tests.methods.hyperlora.driving import X, at, made
from tests.methods.llama import llama


def test_no_condition_is_refused_where_some_are_known(moved):
    with pytest.raises(ConfigError, match="none is set") as error:
        moved(X)
    assert "add" in error.value.facts["known"]
    assert error.value.fix
    with lorica.use(moved):
        assert torch.equal(moved(X), Stack()(X)), "the base needs none"


def test_an_unseen_condition_is_refused(moved):
    with pytest.raises(ConfigError, match="'srot'") as error:
        set_conditions(moved, ["add", "srot"])
    assert error.value.facts["closest"].startswith("sort")
    with pytest.raises(ConfigError, match="'add'"):
        set_conditions(made(conditions=()), ["add"])


def test_other_rows_than_the_conditions_are_refused(moved):
    set_conditions(moved, ["add", "sort"])
    with pytest.raises(DataError, match="3 rows, and conditions are set for 2"):
        moved(X)
    with pytest.raises(DataError, match="2 conditions are set for 3 rows"):
        set_conditions(moved, ["add", "sort"], [5, 5, 5])


def test_conditions_do_not_outlive_the_block(moved):
    with pytest.raises(KeyboardInterrupt), with_conditions(moved, ["add"]):
        raise KeyboardInterrupt
    with pytest.raises(ConfigError, match="none is set"):
        moved(X)


def test_a_text_alone_is_one_condition(moved):
    assert torch.equal(at(moved, "add"), at(moved, ["add"]))


def test_one_condition_that_nobody_named():
    model = move(made(conditions=()), size=0.3)
    want = model(X)
    assert torch.equal(at(model, ["default"]), want)
    with pytest.raises(ConfigError):
        at(model, ["add"])
    assert torch.equal(model(X), want)


def test_layers_of_one_head_have_one_rank():
    with pytest.raises(ConfigError, match="one r for all layers") as error:
        lorica.adapt(Stack(), Hyperlora(r=3), rank_pattern={"layers.0.up": 2})
    assert "rank_pattern" in error.value.fix
    model = lorica.adapt(Stack(), Hyperlora(r=4), alpha_pattern={"layers.0.up": 2})
    assert [a.scale for a in attached(model, "default").adapters.values()] == [0.5, 2, 2, 2]


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"r": True}, "r"),
        ({"latent": 10}, "latent"),
        ({"latent": 0}, "latent"),
        ({"hidden": 0}, "hidden"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"penalty": -1}, "penalty"),
        ({"penalty": math.inf}, "penalty"),
        ({"condition": "tasks"}, "condition"),
        ({"conditions": ["a", "a"]}, "conditions"),
        ({"conditions": ["a", ""]}, "conditions"),
        ({"width": 0}, "width"),
        ({"condition": "embedding", "conditions": ["[1.0]"]}, "conditions"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, word):
    with pytest.raises(ConfigError, match=rf"hyperlora\.{word} is") as error:
        Hyperlora(**settings)
    assert error.value.fix


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"condition": "pair"}, "knows no condition that is a pair"),
        ({"condition": "text", "width": 4}, "knows no condition that is a text"),
        ({"condition": "text", "conditions": ["be kind"]}, "hidden states is not known"),
        ({"condition": "embedding"}, "width of an embedding is not known"),
        ({"condition": "pair", "conditions": ["en"]}, "'en' is no pair"),
        ({"condition": "pair", "conditions": ["en-fr-de"]}, "'en-fr-de' is no pair"),
    ],
    ids=str,
)
def test_what_is_missing_is_said_when_it_is_attached(settings, words):
    model = Stack()
    before = bits(model)
    with pytest.raises(ConfigError, match=words) as error:
        lorica.adapt(model, Hyperlora(**settings))
    assert error.value.fix
    assert same_bits(before, model.state_dict())


def test_the_rows_conditions_become_the_known():
    assert Hyperlora().for_conditions(["b", "a", "b"]).conditions == ("a", "b")
    assert Hyperlora(conditions=("b", "a")).for_conditions(["a", "b"]).conditions == ("b", "a")
    found = Hyperlora(condition="embedding").for_conditions(["[1.0, 2.0]", "[0.5, 3]"])
    assert (found.conditions, found.width) == ((), 2)


@pytest.mark.parametrize(
    "settings, rows, words",
    [
        ({}, None, "the training rows have none"),
        ({}, [], "the training rows have none"),
        ({"conditions": ["a"]}, ["a", "b"], "does not know the condition 'b'"),
        ({"conditions": ["a", "b"]}, ["a"], "no training row has the condition 'b'"),
        ({"condition": "pair"}, ["en-fr", "en"], "'en' is no pair"),
        ({"condition": "pair", "conditions": ["en-fr", "en-de"]}, ["en-fr"], "'de'"),
        ({"condition": "embedding"}, ["[1.0]", "[1.0, 2.0]"], "an embedding has 2 numbers"),
        ({"condition": "embedding"}, ["word"], "'word' is no embedding"),
        ({"condition": "embedding"}, ["[NaN]"], "no embedding"),
        ({"condition": "embedding"}, ["[]"], "no embedding"),
        ({"condition": "embedding"}, ["[true]"], "no embedding"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit(settings, rows, words):
    with pytest.raises(ConfigError, match=words) as error:
        Hyperlora(**settings).for_conditions(rows)
    assert error.value.fix


def test_a_new_pair_of_known_languages_can_be_asked_for_when_it_is_named():
    every = ("de-en", "en-de", "en-fr", "fr-de", "fr-en")
    method = Hyperlora(condition="pair", conditions=every).for_conditions(
        ["en-fr", "fr-de", "de-en"]
    )
    assert method.conditions == every
    model = move(lorica.adapt(Stack(), method), size=0.3)
    assert (at(model, ["en-de"]) - at(model, ["de-en"])).abs().max() > 1e-3, "order counts"
    with pytest.raises(ConfigError, match="'de-fr'"):
        at(model, ["de-fr"])


def test_methods_without_a_use_for_conditions_say_so():
    model = lorica.adapt(Stack(), Lora())
    (line,) = unused_conditions(model, ["b", "a"])
    assert "not used: a, b" in line
    assert unused_conditions(model, None) == []
    assert unused_conditions(made(), ["add"]) == []
    assert Lora().for_conditions(["a"], hidden_size_of(model)) == Lora()


def test_swapped_conditions_are_all_others():
    found = swapped_conditions(["b", "a", "c", "a"])
    assert found == ["c", "b", "a", "b"]


def test_embeddings_need_not_be_known():
    model = move(made(condition="embedding", width=3, conditions=()), size=0.3)
    one, two = "[0.5, -1.0, 2]", "[1.5, 0.0, 0.25]"
    mixed = at(model, [one, two, one])
    torch.testing.assert_close(mixed[1], at(model, [two], X[1:2])[0])
    assert (at(model, [one]) - at(model, [two])).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="has 2 numbers; this adapter reads 3"):
        at(model, ["[1.0, 2.0]"])
    with pytest.raises(ConfigError, match="none is set"):
        model(X)


class Words:
    """A tokenizer of one id a letter."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(3 + ord(letter) % 50 for letter in text)]}


def reader(**settings) -> nn.Module:
    """A real Llama whose adapter is made from texts."""
    base = llama()
    method = Hyperlora(r=2, latent=16, hidden=4, condition="text", **settings)
    return lorica.adapt(base, method.for_conditions(["be kind", "be brief"], hidden_size_of(base)))


def test_texts_are_read_by_the_base():
    model = reader()
    before = bits(model)
    with pytest.raises(ConfigError, match="the base has not encoded the condition 'be kind'"):
        set_conditions(model, ["be kind"])
    move(model.train(), size=0.2)
    assert encode_conditions(model, Words()) == []
    assert model.training, "the mode is as it was"
    state = adapter_state(model)
    (table,) = [t for key, t in state.items() if key.endswith(".table")]
    base = llama()
    for row, text in zip(table, ("be brief", "be kind"), strict=True):
        ids = torch.tensor([Words()(text)["input_ids"]])
        want = base(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
        torch.testing.assert_close(row, want)
    set_conditions(model.eval(), ["be kind", "be brief"])
    assert not torch.allclose(model(IDS).logits[0], model(IDS.flip(0)).logits[1])
    assert same_bits(before, bits(model))


def test_a_new_text_is_taken_by_its_words_and_named(tmp_path):
    model = move(reader(), size=0.2)
    encode_conditions(model, Words())
    with pytest.raises(ConfigError, match="has not encoded the condition 'be bold'"):
        set_conditions(model, ["be bold"])
    (line,) = encode_conditions(model, Words(), ["be bold", "be kind"])
    assert "not trained on" in line and "be bold" in line and "be kind" not in line
    assert encode_conditions(model, Words(), ["be bold"]) == []
    outputs = [at(model, [text], IDS).logits for text in ("be bold", "be kind")]
    assert not torch.allclose(*outputs)
    with pytest.raises(DataError, match="empty"):
        encode_conditions(model, Words(), [" "])
    lorica.save(model, tmp_path / "adapter")
    fresh = llama()
    lorica.load(fresh, tmp_path / "adapter")
    assert torch.equal(at(fresh, ["be kind"], IDS).logits, outputs[1]), "known texts are kept"
    with pytest.raises(ConfigError, match="be bold"):
        set_conditions(fresh, ["be bold"])
    encode_conditions(fresh, Words(), ["be bold"])
    torch.testing.assert_close(at(fresh, ["be bold"], IDS).logits, outputs[0])
