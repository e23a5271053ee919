"""`use` shows a model with other adapters for a moment, and leaves no trace."""

import pytest
import torch

import lorica
from lorica.core.bank import bank_of
from lorica.errors import ConfigError
from tests.laws.bases import CASES, Stack, move, trained

STACK = CASES[0]


def test_use_has_no_gradients():
    model = trained("lora", STACK)
    with lorica.use(model, "default"):
        assert not STACK.run(model).requires_grad
    assert STACK.run(model).requires_grad


def test_use_restores_after_an_exception():
    model = trained("lora", STACK)
    want = STACK.run(model)
    with pytest.raises(KeyboardInterrupt), lorica.use(model):
        raise KeyboardInterrupt
    assert bank_of(model).route.names == ("default",)
    assert torch.equal(STACK.run(model), want)
    assert torch.is_grad_enabled()


def test_use_nests():
    model = trained("lora", STACK)
    base, tuned = STACK.run(Stack()), STACK.run(model)
    with lorica.use(model):
        with lorica.use(model, "default"):
            assert torch.equal(STACK.run(model), tuned)
        assert torch.equal(STACK.run(model), base)


@pytest.mark.parametrize(
    "call",
    [
        lorica.activate,
        lambda m, n: lorica.use(m, n).__enter__(),
        lorica.detach,
        lambda m, n: lorica.save(m, "x", n),
    ],
)
def test_an_unknown_adapter_is_named(call):
    model = trained("lora", STACK)
    with pytest.raises(ConfigError, match="'defualt'") as error:
        call(model, "defualt")
    assert error.value.facts["closest"] == "default"
    assert bank_of(model).route.names == ("default",)


def test_an_adapter_named_twice_acts_once():
    model = trained("lora", STACK)
    want = STACK.run(model)
    lorica.activate(model, "default", "default")
    assert torch.equal(STACK.run(model), want)
    with lorica.use(model, "default", "default"):
        assert torch.equal(STACK.run(model), want)


def test_a_layer_that_raises_gets_its_own_tensors_back():
    model = trained("full", STACK)
    want = STACK.run(model)
    own = model.layers[0]["up"].weight
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 13))
    assert model.layers[0]["up"].weight is own
    assert torch.equal(STACK.run(model), want)


def test_activating_nothing_gives_the_base_and_trains_nothing():
    model = trained("lora", STACK)
    lorica.activate(model)
    assert torch.equal(STACK.run(model), STACK.run(Stack()))
    assert lorica.trainable_parameters(model).trainable == 0
    move(model)
    lorica.activate(model, "default")
    assert torch.equal(STACK.run(model), STACK.run(trained("lora", STACK)))
