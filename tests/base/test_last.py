"""The last block, given only the positions that are read: the loss and gradients stay the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.base import last
from lorica.base.last import ASKED, LastBlock, last_of
from lorica.base.packing import packed
from lorica.base.tail import tail_of
from lorica.core.adapter import Method
from lorica.core.condition import set_conditions
from lorica.core.site import sites_of
from lorica.data.batch import Batch, pack, pad
from lorica.data.tokenise import Example
from lorica.training.step import MOST, Objective
from tests.core.test_attention import EAGER, GROUPED, MODELS, SIZE, tiny
from tests.laws.bases import SIZES, move
from tests.training.test_same_work import exact

OTHERS: dict[str, dict[str, Any]] = {
    "Phi": SIZE,  # one norm before both sublayers, as GPTNeoX has two
    "Phi3": GROUPED,  # output projection before query, keys and values, which are one layer
    "Mixtral": GROUPED,
    "Qwen3Moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
}
SMALL: dict[str, dict[str, Any]] = {
    "llama_adapter": {"adapter_len": 4}, "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4}, "mora": {"r": 4}, "vera": {"r": 4},
}  # fmt: skip
SOME = ("lora", "dora", "bottleneck", "llama_adapter", "prompt_tuning", "full")
HELD = ("Llama", "Phi")  # architectures that see every method


def rows() -> list[Example]:
    """Rows that begin alike, two of them to their last token but one; answers are half of them."""
    draw = torch.Generator().manual_seed(3)
    begins = [*range(10, 19)]
    found = []
    for k, n in enumerate((1, 1, 5, 3, 7)):
        ids = [*begins[: 9 if k < 3 else 2], *torch.randint(1, 96, (n,), generator=draw).tolist()]
        half = len(ids) // 2 + 1
        found.append(Example(ids, [t >= half for t in range(len(ids))], f"row {k}"))
    return found


def laid(how: str) -> Batch:
    return pad(rows(), 0) if how == "padded" else pack(rows(), share=how == "shared")


def model_of(base: str, name: str = "lora", **settings: object) -> nn.Module:
    """In float64, with an adapter that has moved; without dropout also in training."""
    MODELS.setdefault(base, OTHERS.get(base, SIZE))
    model: Any = tiny(base)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method = Method.named(name)(**{**SMALL.get(name, {}), **settings})
    move(lorica.adapt(model, method), size=SIZES.get(name, 0.05)).double()
    if base != "Gemma2":  # whose norms are others
        exact(model)
    return model


def step(model: nn.Module, how: str, **options: bool) -> list[Tensor]:
    """The loss of a batch, and the gradient of everything that is trained."""
    by_row = how != "padded"
    objective = Objective(model, packed=by_row, **options)
    assert objective.tail is not None
    assert (objective.last is None) == options.get("whole", False)
    model.zero_grad()
    if by_row:
        with packed(model):
            loss = objective(laid(how))
            loss.backward()
    else:
        loss = objective(laid(how))
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None for g in gradients)
    return [loss.detach(), *(g.clone() for g in gradients if g is not None)]


def check_same(model: nn.Module, how: str) -> None:
    want, got = step(model, how, whole=True), step(model, how)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("how", ["packed", "padded", "shared"])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("base", sorted({*MODELS, *OTHERS} - {"GptOss"}))  # which is float32 alone
def test_the_loss_and_its_gradients_stay(base, name, how):
    if how != "padded" and base in EAGER:
        pytest.skip("its attention is its own: rows are padded")
    check_same(model_of(base, name), how)
