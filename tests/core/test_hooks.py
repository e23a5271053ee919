"""The hooks, where a layer is called in an unusual way."""

import torch
from torch import Tensor, nn

import lorica


class Keyworded(nn.Module):
    """A layer with a parameter of its own that is called by keywords, as attention often is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.sinks = nn.Parameter(torch.ones(3))

    def forward(self, *, x: Tensor) -> Tensor:
        return self.inner(x) * self.sinks


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Keyworded()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x=x)


def test_a_layer_that_is_called_by_keywords_is_trained_whole():
    model, x = Outer(), torch.randn(2, 3)
    want = model(x)
    lorica.adapt(model, lorica.method("full"))
    got = model(x)
    assert torch.equal(got, want)
    got.sum().backward()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(learned) == 3
    assert all(p.grad is not None for p in learned.values())
