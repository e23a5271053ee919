"""DoRA: the norm held constant, and not; both against numbers worked out by hand."""

from typing import Any

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora
from lorica.core.bank import adapted_layers
from tests.laws.bases import CASES, Stack, X, move

G = torch.tensor([[1.0, 2], [3, 4]])


def by_hand(**settings) -> tuple[nn.Module, nn.Module]:
    """W = [[3, 4], [0, 2]], A = (1, 0), B = (1, 1), s = 1."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[3.0, 4], [0, 2]]))
    model = lorica.adapt(nn.Sequential(layer), Dora(r=1, alpha=1, **settings))
    adapter = next(adapters for _, _, adapters in adapted_layers(model))["default"]
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 0]]))
        adapter.b.fill_(1.0)
    return model, adapter


@pytest.mark.parametrize(
    "detached, v",
    [
        (True, [[0.8838835, 1.7677670], [2.6832816, 3.5777088]]),
        (False, [[-0.4419417, 0.4419417], [0.7155418, -0.3577709]]),
    ],
)
def test_gradients_by_hand(detached, v):
    """The signs of B's gradient tell the two apart; that of m is the same."""
    model, adapter = by_hand(detach_norm=detached)
    (model(torch.eye(2)).T * G).sum().backward()
    gv = torch.tensor(v)
    torch.testing.assert_close(adapter.m.grad, torch.tensor([2.1213203, 4.9193496]))
    torch.testing.assert_close(adapter.b.grad, gv[:, :1])  # grad V A^T
    torch.testing.assert_close(adapter.a.grad, gv.sum(0, keepdim=True))  # B^T grad V


def test_the_output_is_the_same_either_way():
    detached, whole = (move(lorica.adapt(Stack(), Dora(r=4, detach_norm=d))) for d in (True, False))
    assert torch.equal(detached(X), whole(X))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("stack", "packed", "nf4")], ids=str
)
def test_with_the_norm_in_the_graph_gradients_are_exact(case):
    model = move(lorica.adapt(case.make(), Dora(r=4, detach_norm=False)))
    if case.name != "nf4":  # whose layers compute in one dtype
        model = model.double()
    x = X.to(next(p for p in model.parameters() if p.requires_grad))
    model(x).sin().sum().backward()
    generator = torch.Generator().manual_seed(3)
    step = 1e-6 if case.name != "nf4" else 1e-2
    for parameter in [p for p in model.parameters() if p.requires_grad][:6]:
        way = torch.randn(parameter.shape, generator=generator).to(parameter)
        with torch.no_grad():
            parameter.add_(step * way)
            up = model(x).sin().sum()
            parameter.sub_(2 * step * way)
            down = model(x).sin().sum()
            parameter.add_(step * way)
        exact = 1e-4 if case.name != "nf4" else 2e-2
        torch.testing.assert_close(
            (parameter.grad * way).sum(), (up - down) / (2 * step), rtol=exact, atol=10 * exact**2
        )


def test_a_gradient_that_is_not_detached_has_no_part_along_the_row():
    model, adapter = by_hand(detach_norm=False)
    v = torch.tensor([[3.0, 4], [0, 2]]) + adapter.b.detach() @ adapter.a.detach()
    grads = []
    for column in torch.eye(2):  # A = a unit row: B's gradient is that column of V's
        model, adapter = by_hand(detach_norm=False)
        with torch.no_grad():
            layer = model[0]
            layer.weight.copy_(v - adapter.b @ column[None])
            adapter.square.copy_(layer.weight.square().sum(1))
            adapter.a.copy_(column[None])
        (model(torch.eye(2)).T * G).sum().backward()
        grads.append(adapter.b.grad.flatten())
    torch.testing.assert_close(
        (torch.stack(grads, 1) * v).sum(1), torch.zeros(2), atol=1e-6, rtol=0
    )


def test_checkpointing_and_autocast_keep_the_gradient_of_the_norm():
    grads = []
    for checkpointed in (False, True):
        model = move(lorica.adapt(Stack(checkpointed=checkpointed), Dora(r=4, detach_norm=False)))
        with torch.autocast("cpu", torch.bfloat16):
            y = model(X)
        y.float().square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 12
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("detached", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiles_whole_with_gradients(detached):
    torch._dynamo.reset()
    grads = []
    for compiled in (False, True):
        model = move(lorica.adapt(Stack(), Dora(r=4, detach_norm=detached)))
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        run(X).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_norm_is_kept_in_generation_and_follows_every_change():
    """A fused optimizer does not count its writes to a tensor: see core.tensor_cache."""
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 20), torch.randn(5, 12)
    model = lorica.adapt(nn.Sequential(layer), Dora(r=3))
    adapter: Any = layer.adapters["default"]  # type: ignore[index]
    calls: list[int] = []
    now = adapter.norm_now
    adapter.norm_now = lambda *words: calls.append(0) or now(*words)

    @torch.no_grad()
    def right() -> bool:
        weight = layer.weight + adapter.scale * adapter.b @ adapter.a
        want = adapter.m / weight.norm(dim=1) * (x @ weight.T) + layer.bias
        return torch.allclose(model(x), want, atol=1e-5)

    assert right() and right() and len(calls) == 1
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        model(x).square().sum().backward()
        assert right()
        optimizer.step()
        assert right()
        optimizer.zero_grad()
        assert right() and right()
    with torch.no_grad():
        adapter.a.add_(1)
        assert right()
        adapter.load_state_dict({k: v + 1 for k, v in adapter.state_dict().items()})
    assert right()
    adapter.a.data = adapter.a.data * 2
    assert right()
    assert right() and len(calls) < 17
