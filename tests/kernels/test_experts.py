"""Grouped products of experts against one expert after another."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lorica.kernels.experts import (
    ExpertUpdate,
    experts_forward,
    grouped,
    grouped_reference,
    is_supported,
)

E, K, N, HIDDEN, INNER, R = 5, 2, 7, 12, 8, 3


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("turned", [False, True])
def test_grouped_is_one_expert_after_another(turned):
    """Experts without tokens in front, between and behind the others."""
    ends = torch.tensor([0, 3, 3, 9, 9], dtype=torch.int32)
    parts = []
    for function in (grouped, grouped_reference):
        x = random(9, HIDDEN).requires_grad_()
        stack = random(E, HIDDEN, INNER).mT if turned else random(E, INNER, HIDDEN)
        stack = stack.detach().requires_grad_()
        y = function(x, stack, ends)
        parts.append((y, *torch.autograd.grad(y.square().sum(), (x, stack))))
    for got, want in zip(*parts, strict=True):
        torch.testing.assert_close(got, want)


def module(*, turned: bool, biased: bool, gated: bool) -> SimpleNamespace:
    """What transformers declares of a module of experts, with random weights."""
    first = "gate_up_proj" if gated else "up_proj"
    width = 2 * INNER if gated else INNER
    stacks = {first: random(E, width, HIDDEN), "down_proj": random(E, HIDDEN, INNER)}
    biases = {f"{key}_bias": random(E, stack.shape[1]) for key, stack in stacks.items()}
    stored = {k: s.mT.contiguous() if turned else s for k, s in stacks.items()}
    return SimpleNamespace(
        **stored,
        **biases,
        stacks=stacks,
        biases=biases if biased else {},
        first=first,
        num_experts=E,
        has_gate=gated,
        has_bias=biased,
        has_post_expert_norm=False,
        is_transposed=turned,
        _apply_gate=lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        act_fn=F.silu,
    )


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_the_pass_is_that_of_adapted_weights_token_by_token(turned, biased, gated, sized):
    own = module(turned=turned, biased=biased, gated=gated)
    hidden = random(N, HIDDEN)
    index = torch.randint(E - 1, (N, K), generator=torch.Generator().manual_seed(1))
    weights = random(N, K)
    updates, adapted = {}, {}
    for key, stack in own.stacks.items():
        a, b = random(E, R, stack.shape[2]), random(E, stack.shape[1], R)
        size = random(E, stack.shape[1]) if sized else None
        updates[key] = ExpertUpdate(a, b, 0.5, size)
        adapted[key] = (stack + 0.5 * b @ a) * (1 if size is None else size.unsqueeze(-1))
    want = torch.zeros(N, HIDDEN)
    for n in range(N):
        for k in range(K):
            e = index[n, k]
            x = hidden[n]
            for key, act in ((own.first, True), ("down_proj", False)):
                x = adapted[key][e] @ x + own.biases.get(f"{key}_bias", torch.zeros(E, 1))[e]
                x = (own._apply_gate(x) if gated else F.silu(x)) if act else x
            want[n] += weights[n, k] * x
    assert is_supported(own, hidden)
    got = experts_forward(own, hidden, index, weights, updates)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_what_a_module_does_not_declare_is_not_supported():
    own = module(turned=False, biased=False, gated=True)
    own._is_expert_parallel = True
    assert not is_supported(own, random(N, HIDDEN))
    assert not is_supported(SimpleNamespace(is_transposed=False), random(N, HIDDEN))
