"""The loss in pieces against the loss at once: values, gradients, heads of every kind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.kernels import loss as kernel
from lorica.kernels.loss import label_loss, reference

V, C, N = 50, 16, 23
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class Head(nn.Module):
    """A head with what architectures do to logits: bias, scale, soft cap."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(drawn(V, C, seed=1))
        self.bias = nn.Parameter(drawn(V, seed=2))

    def forward(self, h: Tensor) -> Tensor:
        z = nn.functional.linear(h, self.weight, self.bias if self.kind == "bias" else None)
        if self.kind == "scale":
            z = z * 0.25
        return 5 * torch.tanh(z / 5) if self.kind == "soft cap" else z


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("kind", ["plain", "bias", "scale", "soft cap"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("piece", [V, 4 * V + 3, 1 << 23])
def test_it_is_its_definition(piece, trained, kind, dtype, monkeypatch):
    monkeypatch.setattr(kernel, "CHUNK", piece)
    head = Head(kind).to(dtype).requires_grad_(trained)
    targets = torch.arange(N) * 7 % V
    results = []
    for pieces in (True, False):
        head.zero_grad()
        hidden = drawn(N, C).to(dtype).requires_grad_()
        learned = list(head.parameters()) if trained else []
        loss = (
            label_loss(hidden, targets, head, V, learned)
            if pieces
            else reference(hidden, targets, head)
        )
        (loss / N).backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert hidden.grad is not None and hidden.grad.dtype == dtype
        results.append([loss.detach(), hidden.grad, head.weight.grad, head.bias.grad])
    exact = EXACT[dtype]
    for got, want in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            torch.testing.assert_close(got, want, atol=exact * want.abs().max().item(), rtol=0)


def test_no_label_token_gives_a_loss_of_zero_that_is_connected():
    hidden = torch.empty(0, C).requires_grad_()
    loss = label_loss(hidden, torch.empty(0, dtype=torch.long), Head("plain").float(), V)
    loss.backward()
    assert loss == 0 and hidden.grad is not None and hidden.grad.shape == (0, C)


def test_only_the_head_learns():
    head = Head("plain").float()
    hidden, targets = drawn(N, C).float(), torch.arange(N)
    label_loss(hidden, targets, head, V, [head.weight]).backward()
    got = head.weight.grad
    head.zero_grad()
    reference(hidden, targets, head).backward()
    torch.testing.assert_close(got, head.weight.grad)


def test_what_the_loss_does_not_depend_on_gets_no_gradient():
    head, hidden = Head("plain").float(), drawn(N, C).float().requires_grad_()
    label_loss(hidden, torch.arange(N), head, V, [head.weight, head.bias]).backward()
    assert head.weight.grad is not None and head.bias.grad is None


def test_large_logits_do_not_overflow():
    hidden = (1e4 * drawn(N, C).float()).requires_grad_()
    loss = label_loss(hidden, torch.arange(N), Head("plain").float(), V)
    loss.backward()
    assert loss.isfinite() and hidden.grad is not None and hidden.grad.isfinite().all()


def test_a_number_that_is_none_is_seen():
    hidden = torch.full((N, C), torch.nan, requires_grad=True)
    assert label_loss(hidden, torch.arange(N), Head("plain").float(), V).isnan()


def test_only_the_gradient_is_kept(monkeypatch):
    """Neither logits nor the head's weight: a backward pass later needs C numbers a token."""
    kept: list[int] = []

    def note(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    head, hidden = Head("plain").float(), drawn(N, C).float().requires_grad_()
    head.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = label_loss(hidden, torch.arange(N), head, V)
        kept.clear()  # what the pieces kept for themselves is gone by now
    assert loss.grad_fn is not None
    function: Any = loss.grad_fn.next_functions[0][0]  # of which the loss is a part
    (saved,) = (t for t in function.saved_tensors if t is not None)
    assert saved.shape == (N, C)
