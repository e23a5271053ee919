"""Laws that every method obeys on every kind of base. A new method file is tested here as it is."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers
from lorica.core.merge import evaluated
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import MergeError
from lorica.formats.commit import read_tensors
from tests.laws.bases import (
    CASES,
    QUICK,
    Case,
    Stack,
    adapted,
    bits,
    compiled,
    method,
    move,
    on_stack,
    pairs,
    same_bits,
    trained,
)
from tests.marks import at_length

STACK = CASES[0]
CONSTANT = {"dora", "blora"}  # take a part of their formula as a constant in the backward pass
each = pytest.mark.parametrize("name", on_stack())
everywhere = pytest.mark.parametrize("name, case", pairs())


def first_pairs() -> list:
    """pairs(), with all but the first of a method marked slow, unless it is one of QUICK."""
    rows = pairs()
    first = {row.values[0]: row for row in reversed(rows)}
    return [
        row
        if row.values[0] in QUICK or row is first[row.values[0]]
        else pytest.param(*row.values, id=row.id, marks=pytest.mark.slow)
        for row in rows
    ]


mostly_first = pytest.mark.parametrize("name, case", first_pairs())


def affine(model: nn.Module) -> bool:
    return all(
        a.affine for _, _, adapters in adapted_layers(model) for a in adapters.acting_adapters()
    )


def close(got, want, case: Case) -> None:
    torch.testing.assert_close(got, want, atol=case.exact, rtol=max(1e-4, case.exact / 10))


@everywhere
def test_starts_as_the_base(name, case):
    base, model = case.make(), adapted(name, case)
    if Method.named(name).starts_as_base:
        close(case.run(model), case.run(base), case)
    else:
        assert not torch.allclose(case.run(model), case.run(base), atol=1e-4)
    names = [n for n, _ in model.named_parameters() if ".adapters." not in n]
    assert names == [n for n, _ in base.named_parameters()]
    assert [type(m) for m in base.modules()] == [
        type(m) for n, m in model.named_modules() if "adapters" not in n.split(".")
    ]


@everywhere
def test_moving_the_adapter_moves_the_output(name, case):
    away = (case.run(trained(name, case)) - case.run(case.make())).abs().max()
    assert away > 10 * 2e-5


@everywhere
def test_merge_is_forward(name, case):
    model = trained(name, case)
    want = case.run(model)
    if not affine(model):
        with pytest.raises(MergeError):
            lorica.merge(model)
        return
    lorica.merge(model)
    assert not list(adapted_layers(model))
    close(case.run(model), want, case)


@everywhere
def test_closed_form_is_the_action_on_the_identity(name, case):
    model = trained(name, case)
    for _, module, adapters in adapted_layers(model):
        (adapter,) = adapters.acting_adapters()
        if not adapter.affine or adapter.weights(module) or case.exact > 1e-3:
            continue
        site = adapters.as_site(module)
        weight, bias = site.dense()
        closed = adapter.merged(weight, bias)
        if closed is None:
            continue
        asked = evaluated(site, [adapter], weight, bias)
        for got, want in zip(closed, asked, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@everywhere
def test_what_it_says_of_plain_lora_is_so(name, case):
    """`to_lora`: factors that give the merged weight, or affine at least, or neither."""
    model, says = trained(name, case), Method.named(name).to_lora
    if says == "never":
        assert not affine(model)
        return
    assert affine(model)
    for _, module, adapters in adapted_layers(model):
        site = adapters.as_site(module)
        for adapter in adapters.acting_adapters():
            factors = adapter.factors()
            if site.kind == "expert":  # a stack of LoRAs; export refuses it by name
                assert factors is None
                continue
            assert factors is not None or says == "approximate"
            if factors is None or case.exact > 1e-3:
                continue
            weight, bias = site.dense()
            want, _ = evaluated(site, [adapter], weight, bias)
            a, b = factors
            assert a.shape[0] == b.shape[1]
            torch.testing.assert_close(weight + b @ a, want, atol=1e-5, rtol=1e-4)


@everywhere
def test_detach_is_exact(name, case):
    base, model = case.make(), case.make()
    for m in (base, model):
        for i, parameter in enumerate(m.parameters()):
            parameter.requires_grad_(i % 2 == 0)
    lorica.adapt(model, method(name), **case.targets)
    move(model)
    lorica.detach(model)
    assert same_bits(bits(base), model.state_dict())
    assert torch.equal(case.run(model), case.run(base))
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.requires_grad) for n, p in base.named_parameters()
    ]
    for before, after in zip(base.modules(), model.modules(), strict=True):
        assert len(before._forward_hooks) == len(after._forward_hooks)
        assert len(before._forward_pre_hooks) == len(after._forward_pre_hooks)
        assert len(before._forward_hooks_always_called) == len(after._forward_hooks_always_called)


@everywhere
def test_training_never_writes_to_the_base(name, case):
    model = move(adapted(name, case)).train()
    before = bits(model)
    start = {k: t.detach().clone() for k, t in adapter_state(model).items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        case.run(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_bits(before, bits(model))
    assert all(p.grad is None for n, p in model.named_parameters() if ".adapters." not in n)
    for key, tensor in adapter_state(model).items():
        if tensor.requires_grad:
            assert not torch.equal(tensor, start[key]), f"{key} never moved"


@mostly_first
def test_saved_and_loaded_gives_the_same_output(name, case, tmp_path):
    model = trained(name, case)
    lorica.save(model, tmp_path / "adapter")
    fresh = case.make()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(case.run(fresh), case.run(model))
    inside = read_tensors(tmp_path / "adapter/adapter_model.safetensors")
    state = adapter_state(model)
    assert sorted(t.numel() for t in inside.values()) == sorted(t.numel() for t in state.values())
    again = lorica.save(fresh, tmp_path / "again")
    assert (again / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter/adapter_model.safetensors"
    ).read_bytes()


@mostly_first
def test_copies_stand_on_their_own(name, case):
    model = trained(name, case)
    want = case.run(model)
    copied = copy.deepcopy(model)
    assert torch.equal(case.run(copied), want)
    with lorica.use(copied):
        assert torch.equal(case.run(model), want), "the copy's bank is the model's"
    lorica.detach(copied)
    assert torch.equal(case.run(copied), case.run(case.make()))
    assert torch.equal(case.run(model), want)
    assert torch.equal(case.run(pickle.loads(pickle.dumps(model))), want)


@everywhere
def test_state_goes_from_one_model_to_another(name, case):
    model, other = trained(name, case), trained(name, case, seed=2)
    assert not torch.allclose(case.run(other), case.run(model))
    load_adapter_state(other, adapter_state(model))
    assert torch.equal(case.run(other), case.run(model))


@everywhere
def test_adapters_are_float32(name, case):
    model = adapted(name, case)
    floats = [t for t in adapter_state(model).values() if t.is_floating_point()]
    assert floats
    assert {t.dtype for t in floats} == {torch.float32}


@everywhere
def test_same_seed_same_bits(name, case):
    def start(seed: int) -> dict[str, torch.Tensor]:
        model = lorica.adapt(case.make(), method(name), seed=seed, **case.targets)
        return {k: t.detach() for k, t in adapter_state(model).items()}

    case.make()  # may load a file for the first time
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = start(3)
    torch.manual_seed(99)
    again = start(3)
    assert same_bits(first, again)
    torch.manual_seed(5)
    start(4)
    assert torch.equal(torch.get_rng_state(), before), "adapt() moved the global random state"


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_another_seed_gives_another_start(name):
    first, second = (
        lorica.adapt(Stack(), method(name), seed=seed).layers[0]["up"].adapters["default"].a
        for seed in (1, 2)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", compiled(on_stack(), quick=("dora",)))
def test_compiles_whole(name):
    torch._dynamo.reset()
    case = STACK
    model = trained(name, case)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(case.run(compiled), case.run(model), atol=1e-5, rtol=1e-5)
    with lorica.use(model):
        torch.testing.assert_close(case.run(compiled), case.run(case.make()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(case.run(compiled), case.run(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", compiled(at_length(on_stack(), ["lora", "dora", "adalora"])))
def test_compiled_before_adapting_is_noticed(name):
    torch._dynamo.reset()
    model = Stack()
    compiled = torch.compile(model, backend="aot_eager")
    base = STACK.run(compiled)
    lorica.adapt(model, method(name))
    move(model)
    torch.testing.assert_close(STACK.run(compiled), STACK.run(model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(STACK.run(compiled), base, atol=1e-4)
    lorica.detach(model)
    assert torch.equal(STACK.run(compiled), base)


@each
def test_checkpointing_keeps_gradients(name):
    grads = []
    for checkpointed in (False, True):
        model = move(lorica.adapt(Stack(checkpointed=checkpointed), method(name)))
        STACK.run(model).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert grads[0]
    assert all(g is not None for g in grads[0].values())
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key])


@pytest.mark.parametrize("name", [name for name in on_stack() if name not in CONSTANT])
def test_gradients_match_float64_differences(name):
    """Of methods without a part that is a constant in the backward pass; see their own vectors."""
    from tests.laws.bases import X

    model, x, step = trained(name, STACK).double(), X.double(), 1e-6
    model(x).sin().sum().backward()
    generator = torch.Generator().manual_seed(3)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert learned
    for parameter in learned[:6]:
        way = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        with torch.no_grad():
            for shift in (step, -2 * step):
                parameter.add_(shift * way)
                values.append(model(x).sin().sum())
            parameter.add_(step * way)
        difference = (values[0] - values[1]) / (2 * step)
        assert parameter.grad is not None
        torch.testing.assert_close((parameter.grad * way).sum(), difference, rtol=1e-4, atol=1e-6)
