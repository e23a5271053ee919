"""Several adapters on one model: chosen, combined, merged; the laws of their company."""

import pytest
import torch

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers, bank_of
from lorica.core.route import Everywhere
from lorica.errors import ConfigError, TargetError
from tests.laws.bases import CASES, Stack, bits, method, move, on_stack, pairs, same_bits

STACK = CASES[0]
MIXED = {"stack", "llama", "gpt2", "embedding"}
AFFINE = [name for name in on_stack() if Method.named(name).to_lora != "never"]
each = pytest.mark.parametrize("name", on_stack())
each_affine = pytest.mark.parametrize("name", AFFINE)


@each
def test_two_adapters_on_one_model(name):
    model, alone = Stack(), {}
    for seed, adapter in ((1, "first"), (2, "second")):
        lorica.adapt(model, method(name), name=adapter, seed=seed)
        move(model, seed)
        alone[adapter] = STACK.run(model).detach()
    assert not torch.allclose(alone["first"], alone["second"])
    lorica.activate(model, "first")
    assert torch.equal(STACK.run(model), alone["first"])
    learns = {
        n.split(".adapters.")[1].split(".")[0]
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    assert learns == {"first"}
    with lorica.use(model, "second"):
        assert torch.equal(STACK.run(model), alone["second"])
    lorica.activate(model, "first", "second")
    both = STACK.run(model)
    lorica.activate(model, "second")
    lorica.detach(model, "first")
    assert torch.equal(STACK.run(model), alone["second"])
    stands_in = any(
        a.weights(m)
        for _, m, layer_adapters in adapted_layers(model)
        for a in layer_adapters.acting_adapters()
    )
    assert torch.allclose(both, alone["second"]) == stands_in, "two whole layers: the last counts"
    lorica.detach(model)
    assert torch.equal(STACK.run(model), STACK.run(Stack()))


@each_affine
@pytest.mark.parametrize("under", ["lora", "dora", "full"])
def test_merging_two_active_adapters_is_their_forward(name, under):
    model = Stack()
    for adapter, which in (("under", under), ("over", name)):
        lorica.adapt(model, method(which), name=adapter)
        move(model, len(adapter))
    lorica.activate(model, "under", "over")
    want = STACK.run(model)
    lorica.merge(model)
    torch.testing.assert_close(STACK.run(model), want, atol=2e-5, rtol=1e-4)


@each_affine
def test_merging_drops_what_is_not_active_and_says_so(name):
    model = Stack()
    lorica.adapt(model, method(name), name="kept")
    move(model)
    want = STACK.run(model)
    lorica.adapt(model, method(name), name="idle")
    move(model, 3)
    lorica.activate(model, "kept")
    (line,) = lorica.merge(model)
    assert "'idle'" in line
    torch.testing.assert_close(STACK.run(model), want, atol=2e-5, rtol=1e-4)


def test_quantised_layers_cannot_be_trained_in_full():
    before = bits(model := Stack(packed=True))
    with pytest.raises(TargetError, match="quantised layers cannot be trained in full"):
        lorica.adapt(model, method("full"))
    assert same_bits(before, model.state_dict())


@pytest.mark.parametrize("name, case", [p for p in pairs() if str(p.values[1]) in MIXED])
def test_rows_of_a_batch_may_each_have_an_adapter(name, case):
    """Each row gives what it gives alone with its adapter; None is the base."""
    model = case.make()
    for seed, adapter in enumerate(("one", "two")):
        lorica.adapt(model, method(name), name=adapter, seed=seed, **case.targets)
        move(model, seed)
    want = {None: case.run(case.make()).detach()}
    for adapter in ("one", "two"):
        with lorica.use(model, adapter):
            want[adapter] = case.run(model)
    batches = (["one", None, "two"], ["two", "two", "one"])
    for names in [n[: len(want[None])] for n in batches]:
        if not method(name).mixes:
            with pytest.raises(ConfigError, match="rows"), lorica.mixed(model, names):
                pass
            continue
        with lorica.mixed(model, names):
            got = case.run(model)
        for i, adapter in enumerate(names):
            torch.testing.assert_close(got[i], want[adapter][i], atol=1e-5, rtol=1e-4)
    assert bank_of(model).current == Everywhere.of(["one", "two"][1:])


def test_a_batch_of_other_rows_than_were_named():
    model = move(lorica.adapt(Stack(), method("lora")))
    wrong = pytest.raises(ConfigError, match="2 rows, and the batch has 3")
    with wrong, lorica.mixed(model, ["default", None]):
        STACK.run(model)
    with pytest.raises(ConfigError, match="'defualt'"), lorica.mixed(model, ["defualt"]):
        pass
