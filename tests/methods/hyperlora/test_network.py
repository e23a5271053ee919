"""HyperLoRA: the start, the first steps, and rows of several conditions."""

import copy
import math

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.core.condition import (
    set_conditions,
    with_conditions,
)
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import Stack, move
from tests.methods.hyperlora.driving import TASKS, X, at, made, network


def test_every_condition_starts_as_the_base_with_the_same_a():
    model, base = made(), Stack()(X)
    for task in TASKS:
        assert torch.equal(at(model, [task]), base)
    assert torch.equal(at(model, TASKS), base)
    starts = []
    for task in TASKS:
        with with_conditions(model, [task]):
            starts.append([a.factors() for a in attached(model, "default").adapters.values()])
    for first, *others in zip(*starts, strict=True):
        assert not first[1].any()
        assert first[0].abs().max() > 0
        for other in others:
            assert torch.equal(first[0], other[0])


def test_the_bias_of_a_is_a_loras_start():
    layer = nn.Linear(400, 30)
    model = lorica.adapt(nn.Sequential(layer), Hyperlora(r=8, hidden=8, latent=16))
    (head,) = network(model).heads.values()
    bound = head.bias_a.abs().max().item()
    assert 0.045 < bound <= 1 / math.sqrt(400)
    assert abs(head.bias_a.std().item() - 1 / math.sqrt(3 * 400)) < 0.002
    for zero in (head.weight_a, head.weight_b, head.bias_b):
        assert not zero.any()


def test_the_branch_by_hand():
    """s = 6 / 2; A = W_A u + b_A with the network's own u."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Hyperlora(r=2, alpha=6, latent=8, hidden=4))
    (head,) = network(model).heads.values()
    with torch.no_grad():
        head.bias_a.copy_(torch.tensor([[1.0, 2, 3, 4]]))  # rows of A
        head.bias_b.copy_(torch.tensor([[1.0, 0, 2, 1]]))  # rows of B
    want = 3 * torch.tensor([3.0, 2 * 3 + 7])  # A (1, 1) = (3, 7)
    torch.testing.assert_close(model(torch.ones(2)), want)
    seen = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    move(model, 3, 0.1)
    with torch.no_grad():
        got = model(torch.ones(2))
    u = seen[0] / 4
    a, b = (
        (u @ w.T + bias).view(2, 2)
        for w, bias in ((head.weight_a, head.bias_a), (head.weight_b, head.bias_b))
    )
    torch.testing.assert_close(got, 3 * b @ a @ torch.ones(2))


def test_the_first_step_moves_the_heads_of_b_alone_and_then_all_move():
    model = made()
    own = dict(network(model).named_parameters())
    set_conditions(model, TASKS)
    (model(X) - X.flip(1)).square().sum().backward()
    moves = {key for key, p in own.items() if p.grad is not None and p.grad.any()}
    heads = network(model).heads
    assert moves == {f"heads.{head}.{p}_b" for head in heads for p in ("weight", "bias")}
    assert all(p.grad is not None for p in own.values())
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    (model(X) - X.flip(1)).square().sum().backward()
    assert [key for key, p in own.items() if not p.grad.any()] == []


def test_the_gradient_of_the_weight_of_b_is_that_of_b_times_u():
    model = lorica.adapt(nn.Sequential(nn.Linear(5, 4)), Hyperlora(r=2, latent=8, hidden=3))
    (head,) = network(model).heads.values()
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach() / 3))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    (model(x) * g).sum().backward()
    g_b = 2.0 * g.T @ (x @ head.bias_a.detach().view(2, 5).T)  # (O, R)
    torch.testing.assert_close(head.weight_b.grad, torch.outer(g_b.flatten(), seen[0][0]))
    torch.testing.assert_close(head.bias_b.grad, g_b.flatten()[None])


def test_the_biases_alone_are_a_lora_step_for_step():
    """At every layer, also where several share a head."""
    hyper, plain = made(penalty=0.0), lorica.adapt(Stack(), Lora(r=3))
    for name, parameter in network(hyper).named_parameters():
        parameter.requires_grad_(name.endswith((".bias_a", ".bias_b")))
    pairs = []
    for name, adapter in attached(plain, "default").adapters.items():
        place = attached(hyper, "default").adapters[name].place
        head = network(hyper).heads[place.head]
        a, b = head.bias_a[place.number].view(3, -1), head.bias_b[place.number].view(-1, 3)
        with torch.no_grad():
            adapter.a.copy_(a)
        pairs += [(adapter.a, a), (adapter.b, b)]
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.02)
        for m in (hyper, plain)
    ]
    for step in range(8):
        x, y = (
            torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2 * step + i))
            for i in range(2)
        )
        set_conditions(hyper, [TASKS[step % 3], TASKS[1], TASKS[0]])
        for model, optimizer in zip((hyper, plain), optimizers, strict=True):
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for got, want in pairs:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert min(b.abs().max() for _, b in pairs) > 0.05


@pytest.mark.parametrize("latent, hidden, r", [(16, 6, 3), (128, 64, 8)])
def test_what_is_trained_is_counted_in_closed_form(latent, hidden, r):
    shapes = [(12, 20), (20, 12)]  # up and down, in two blocks each
    heads = (hidden + 2) * r * sum(i + o for i, o in shapes)
    n, half, quarter = latent, latent // 2, latent // 4
    norms = 2 * (half + 2 * quarter) + 2 * n + 2 * n  # of the parts, in res, in out
    trunk = (n * n + n) + (2 * n * n + 2 * n) + (2 * n * n + n) + (n * hidden + hidden)
    places = 2 * quarter + 2 * quarter  # two depths, two types

    def trained(**settings) -> int:
        model = made(r=r, latent=latent, hidden=hidden, **settings)
        return lorica.trainable_parameters(model).trainable

    rest = heads + norms + trunk + places
    assert trained() == rest + 3 * half
    pairs = ("en-fr", "fr-en", "en-de", "de-fr")
    assert trained(condition="pair", conditions=pairs) == rest + 3 * quarter
    known = {"condition": "embedding", "width": 7, "conditions": ()}
    assert trained(**known) == rest + 7 * half + half
    assert trained(condition="text", width=7) == rest + 7 * half + half


def test_conditions_are_different_adapters(moved):
    outputs = [at(moved, [task]) for task in TASKS]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


def test_mixed_rows_are_the_rows_alone(moved):
    mixed = at(moved, ["turn", "add", "turn"])
    for row, task in enumerate(["turn", "add", "turn"]):
        torch.testing.assert_close(mixed[row], at(moved, [task], X[row : row + 1])[0])


def test_rows_end_to_end_are_the_rows_alone(moved):
    lengths, tasks = [5, 2, 4, 1], ["sort", "add", "sort", "turn"]
    x = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(1))
    set_conditions(moved, tasks, lengths)
    got = moved(x)[0].split(lengths)
    for row, task, rows in zip(x[0].split(lengths), tasks, got, strict=True):
        torch.testing.assert_close(rows, at(moved, [task], row.unsqueeze(0))[0])


def test_both_layouts_give_one_gradient(moved):
    lengths, tasks, grads = [5, 5, 5], ["sort", "add", "sort"], []
    for x, told in ((X, None), (X.reshape(1, 15, 12), lengths)):
        set_conditions(moved, tasks, told)
        moved(x).sin().sum().backward()
        grads.append({n: p.grad for n, p in moved.named_parameters() if p.grad is not None})
        moved.zero_grad()
    assert len(grads[0]) > 20
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key], atol=1e-4, rtol=1e-4)


def test_checkpointing_with_several_conditions_keeps_gradients():
    grads = []
    for checkpointed in (False, True):
        model = lorica.adapt(
            Stack(checkpointed=checkpointed), Hyperlora(r=3, latent=16, hidden=6, conditions=TASKS)
        )
        move(model, size=0.3)
        set_conditions(model, ["turn", "add", "turn"])
        model(X).sin().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key])


@pytest.mark.slow
def test_several_conditions_compile_whole(moved):
    torch._dynamo.reset()
    compiled = torch.compile(moved, backend="aot_eager", fullgraph=True)
    for tasks in (["turn", "add", "turn"], ["add", "sort", "sort"]):
        set_conditions(moved, tasks)
        torch.testing.assert_close(compiled(X), moved(X), atol=1e-5, rtol=1e-5)


def test_the_network_is_float32_under_autocast_and_on_a_bfloat16_base(moved):
    seen = []
    network(moved).register_forward_hook(lambda *args: seen.extend(args[2]))
    with torch.autocast("cpu", torch.bfloat16):
        assert at(moved, TASKS).dtype == Stack()(X).dtype
    half = lorica.adapt(Stack().bfloat16(), Hyperlora(r=3, latent=16, conditions=TASKS))
    network(half).register_forward_hook(lambda *args: seen.extend(args[2]))
    assert at(half, TASKS).dtype == torch.bfloat16
    assert len(seen) == 16
    assert {t.dtype for t in seen} == {torch.float32}


def test_what_is_made_is_made_once_without_gradients(moved):
    calls = []
    network(moved).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        set_conditions(moved, ["add"])
        first = moved(X)
        assert len(calls) == 4
        assert torch.equal(moved(X), first)
        assert len(calls) == 4, "generation asks for the same matrices at every token"
        network(moved).heads["up_12x20"].bias_b.add_(0.1)
        changed = moved(X)
        assert not torch.allclose(changed, first), "a weight has changed since"
        set_conditions(moved, ["sort"])
        assert not torch.allclose(moved(X), changed)
    with_grad = moved(X)
    assert with_grad.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(moved(X), with_grad)


def test_copies_have_conditions_of_their_own(moved):
    set_conditions(moved, ["add"])
    want = moved(X)
    copied = copy.deepcopy(moved)
    set_conditions(copied, ["sort"])
    assert torch.equal(moved(X), want)
    assert not torch.allclose(copied(X), want)
    with torch.no_grad():  # and its matrices are made from its own weights
        before = copied(X)
        for parameter in network(copied).parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(copied(X), before)
        assert torch.equal(moved(X), want)


def test_dropout_acts_in_training_alone():
    model = move(made(dropout=0.5), size=0.3)
    set_conditions(model, ["add"])
    assert torch.equal(model.eval()(X), model(X))
    assert not torch.equal(model.train()(X), model(X))
