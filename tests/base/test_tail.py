"""A model taken apart at its decoder: the parts are the whole, and give its loss and gradients."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lorica
from lorica.base.packing import packed
from lorica.base.tail import tail_of
from lorica.core.site import sites_of
from lorica.core.state import adapter_state
from lorica.data.batch import pack, pad
from lorica.data.example import Example
from lorica.training.objective import Objective
from tests.core.attention_models import EAGER, GROUPED, MODELS, SIZE, tiny
from tests.marks import slow_but

ODD_HEADS = {
    "Cohere": {**GROUPED, "logit_scale": 0.3},
    "Granite": {**GROUPED, "logits_scaling": 3.0},
    "Phi": SIZE,  # its head has a bias
    "Gemma2": {**MODELS["Gemma2"], "final_logit_softcapping": 2.0},
}
ROWS = [
    Example(ids=[5, 9, 4, 7, 3], learned=[False, False, True, True, True], where="one"),
    Example(ids=[8, 2, 6], learned=[False, True, True], where="two"),
]


def model_of(base: str) -> nn.Module:
    MODELS.setdefault(base, ODD_HEADS.get(base, SIZE))
    return tiny(base, **ODD_HEADS.get(base, {}))


def plain(model: nn.Module) -> torch.Tensor:
    """The summed loss, row by row, from all logits."""
    total = torch.zeros((), dtype=next(model.parameters()).dtype)
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        kept = torch.tensor(row.learned[1:])
        total = total + F.cross_entropy(
            logits[kept], torch.tensor(row.ids[1:])[kept], reduction="sum"
        )
    return total


LAID = [
    (base, laid)
    for base, laid in product(sorted({*MODELS, *ODD_HEADS}), ("packed", "padded"))
    if laid == "padded" or base not in EAGER  # whose own attention takes padded rows alone
]
QUICK = ("Llama", "Cohere", "Phi", "Gemma2", "GptOss")


@pytest.mark.parametrize("base, laid", slow_but([row for row in LAID if row[0] in QUICK], LAID))
@pytest.mark.parametrize("head", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_whole(base, laid, head):
    model, exact = model_of(base).eval(), 1e-4  # without dropout
    if base != "GptOss":  # its experts refuse float64
        model, exact = model.double(), 1e-9
    linear = [s.name for s in sites_of(model) if head or not s.is_head]
    lorica.adapt(model, lorica.Lora(r=2), target_modules=linear)
    model.to(next(model.parameters()).dtype)
    for i, tensor in enumerate(adapter_state(model).values()):
        tensor.detach().add_(
            0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i))
        )
    want = plain(model)
    want.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    objective = Objective(model, packed=laid == "packed")
    assert objective.tail is not None
    assert bool(objective.tail.trainable()) == head
    if laid == "packed":
        with packed(model):
            got = objective(pack(ROWS))
            got.backward()
    else:
        got = objective(pad(ROWS, 0))
        got.backward()
    torch.testing.assert_close(got, want, atol=exact, rtol=100 * exact)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], atol=exact, rtol=100 * exact)


def test_the_model_is_whole_again_afterwards():
    model = tiny("Llama")
    names = [n for n, _ in model.named_modules()]
    tail = tail_of(model)
    assert tail is not None
    with pytest.raises(RuntimeError):
        tail(torch.zeros(3, 999))
    assert [n for n, _ in model.named_modules()] == names
    assert model.training == tiny("Llama").training


class Apart(nn.Module):
    """Does more between decoder and head than the head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny("Llama")
        self.config = self.inner.config

    def get_decoder(self) -> nn.Module:
        return self.inner.model  # type: ignore[return-value]

    def forward(self, **options):
        return self.inner(**options)


def test_a_model_that_cannot_be_taken_apart_gives_the_same_loss():
    model = Apart()
    assert tail_of(model) is None
    lorica.adapt(model, lorica.Lora(r=2))
    objective = Objective(model, packed=False)
    assert objective.tail is None
    torch.testing.assert_close(objective(pad(ROWS, 0)), plain(model))


def test_a_model_whose_parts_are_not_the_whole_is_left_whole():
    model = tiny("Llama")
    handle = model.lm_head.register_forward_hook(lambda m, args, y: y * len(args[0][0]))
    model.register_forward_hook(lambda m, args, y: setattr(y, "logits", y.logits + 1) or y)
    assert tail_of(model) is None
    handle.remove()
    assert list(model._modules) == list(tiny("Llama")._modules)
