"""The padding row of an embedding: no method acts on it, trains it or merges into it.

torch.nn.Embedding gives the row `padding_idx` no gradient; loralib and PEFT pass that on.
"""

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers
from lorica.core.rates import rates_of
from lorica.core.state import adapter_state
from lorica.training.optim import make_optimizer

PAD, IDS = 3, torch.tensor([[1, 2, 3, 3], [5, 3, 0, 7]])
ON_EMBEDDINGS = [n for n in Method.names() if "embedding" in Method.named(n).kinds]


class Words(nn.Module):
    def __init__(self, padding_idx: int | None = PAD):
        super().__init__()
        self.words = nn.Embedding(9, 6, padding_idx=padding_idx)
        self.out = nn.Linear(6, 6)
        with torch.no_grad():
            self.words.weight.normal_(generator=torch.Generator().manual_seed(0))

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.words(ids))


def adapted(kind: str, model: Words) -> nn.Module:
    """`model` with an adapter of a method on its embedding, or trained whole beside a LoRA."""
    if kind in ON_EMBEDDINGS:
        return lorica.adapt(model, lorica.method(kind), target_modules=["words"])
    how = {"whole": {"modules_to_save": ["words"]}, "rows": {"trainable_token_indices": [1, 3, 5]}}
    return lorica.adapt(model, lorica.Lora(r=2), target_modules=["out"], **how[kind])


def trained(model: nn.Module, steps: int = 3) -> nn.Module:
    tensors = {k: t for k, t in adapter_state(model).items() if isinstance(t, nn.Parameter)}
    optimizer = make_optimizer(tensors, rates_of(model, 0.1), kind="adamw", decay=0.0)
    for _ in range(steps):
        (model(IDS) - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("kind", [*ON_EMBEDDINGS, "whole", "rows"])
def test_the_padding_row_stays_as_it_is(kind):
    base = Words()
    want = base.words.weight.detach().clone()
    model = trained(adapted(kind, base))
    got = model.words(torch.arange(9)).detach()
    assert torch.equal(got[PAD], want[PAD])
    moved = (got != want).any(1)
    assert moved[[1, 5]].all(), "the rows beside it are trained"
    lorica.merge(model)
    torch.testing.assert_close(model.words.weight, got, atol=1e-6, rtol=1e-5)
    assert torch.equal(model.words.weight[PAD], want[PAD])


@pytest.mark.parametrize("kind", ON_EMBEDDINGS)
def test_in_mixed_batches_too(kind):
    model = trained(adapted(kind, Words()))
    want = model.words(IDS).detach()
    if lorica.method(kind).mixes:
        with lorica.mixed(model, ["default", None]):
            assert torch.equal(model.words(IDS)[0], want[0])


@pytest.mark.parametrize("kind", [k for k in ON_EMBEDDINGS if k != "full"])
def test_an_embedding_without_padding_trains_every_row(kind):
    model = trained(adapted(kind, Words(None)))
    base = Words(None).words.weight
    moved = (model.words(torch.arange(9)) != base).any(1)
    assert moved[IDS.unique()].all()
    assert all(adapters.padding_idx is None for _, _, adapters in adapted_layers(model))
