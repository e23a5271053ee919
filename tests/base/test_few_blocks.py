"""Trials on a few blocks of each kind have the result of trials on all of them."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from lorica.base import few_blocks as module
from lorica.base.batching import padding_of
from lorica.base.causal import check_causal
from lorica.base.few_blocks import FIRST, LAST, few_blocks, tried
from lorica.base.last_block import last_block_of
from lorica.base.packing import packing_of, why_not_shared
from lorica.base.tail import tail_of
from lorica.core.site import blocks_of
from lorica.errors import BaseError
from tests.base.architectures import BASES, deep
from tests.marks import at_length, slow_but

QUICK = ["llama", "gpt2", "gptj", "gemma3", "gpt_oss", "llama4_temperature", "mamba2", "phi3"]
MORE = ["gemma3n", "qwen3_next", "deepseek_v3", "bamba", "recurrent_gemma", "rwkv"]


def names_of_last(model: nn.Module, by_row: bool) -> Any:
    tail = tail_of(model)
    last = tail and last_block_of(model, tail.decoder, by_row=by_row)
    names = {module: name for name, module in model.named_modules()}
    return last and [names[layer] for layer in (last.attention, *last.layers)]


TRIALS = {
    "causal": lambda model: check_causal(model, "base"),
    "padding": padding_of,
    "packing": packing_of,
    "shared": why_not_shared,
    "tail": lambda model: tail_of(model) is not None,
    "last block": lambda model: names_of_last(model, by_row=False),
    "last block, packed": lambda model: names_of_last(model, by_row=True),
}


def result(trial: Any, model: nn.Module) -> Any:
    try:
        return trial(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@contextmanager
def all_blocks(model: nn.Module):
    yield False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", slow_but(QUICK, at_length(list(BASES), QUICK + MORE)))
def test_a_trial_on_a_few_blocks_has_the_result_of_one_on_all(name, monkeypatch):
    few = deep(name)
    found = {key: result(trial, few) for key, trial in TRIALS.items()}
    monkeypatch.setattr(module, "few_blocks", all_blocks)
    whole = deep(name)
    assert found == {key: result(trial, whole) for key, trial in TRIALS.items()}


def passes_of(model: nn.Module) -> list[int]:
    """How often each block is called, filled by the passes from now on."""
    calls = [0 for _ in blocks_of(model)]
    for i, block in enumerate(blocks_of(model).values()):

        def count(*_: Any, i: int = i) -> None:
            calls[i] += 1

        block.register_forward_pre_hook(count)
    return calls


def test_most_blocks_are_skipped_and_come_back():
    model = deep("llama")
    blocks, ids = list(blocks_of(model).values()), torch.arange(3, 9).unsqueeze(0)
    whole = model(input_ids=ids).logits
    calls = passes_of(model)
    for trial in TRIALS.values():
        trial(model)
    assert calls[FIRST : len(calls) - LAST] == [0] * (len(calls) - FIRST - LAST)
    assert all(calls[:FIRST] + calls[-LAST:])
    assert list(blocks_of(model).values()) == blocks
    assert torch.equal(model(input_ids=ids).logits, whole)


def test_a_trial_that_fails_on_few_blocks_is_repeated_on_all():
    model = deep("llama")
    seen: list[int] = []

    def trial() -> bool:
        seen.append(sum(isinstance(b, module._Skipped) for b in layers_of(model)))
        return seen[-1] == 0

    assert tried(model, trial, bool)
    assert seen == [len(blocks_of(model)) - FIRST - LAST, 0]
    assert tried(model, lambda: 1 / (trial() and 1), lambda _: True) == 1.0


def layers_of(model: Any) -> list[nn.Module]:
    return list(model.model.layers)


def test_a_block_of_its_own_kind_is_never_skipped():
    """One in the middle, of another class, that reads later tokens."""

    class Both(nn.Module):
        def __init__(self, block: nn.Module):
            super().__init__()
            self.block = block

        def forward(self, hidden: torch.Tensor, **options: Any) -> torch.Tensor:
            return self.block(hidden + hidden.mean(1, keepdim=True), **options)

    model = deep("llama")
    check_causal(model, "base")
    layers = model.model.layers
    layers[5] = Both(layers[5])
    with few_blocks(model) as are_few:
        assert are_few
        assert isinstance(layers[5], Both)
    with pytest.raises(BaseError, match="both directions"):
        check_causal(model, "base")


@pytest.mark.parametrize("where", ["block", "list in the block", "config"])
def test_a_setting_of_a_block_makes_its_kind(where):
    model = deep("llama")
    if where == "config":  # the decoder looks it up by the block's number
        model.config.kinds = ["full"] * 5 + ["sliding"] + ["full"] * 4
    else:
        model.model.layers[5].self_attn.window = 3 if where == "block" else [3]
    with few_blocks(model):
        kept = [not isinstance(b, module._Skipped) for b in layers_of(model)]
    assert [i for i, is_kept in enumerate(kept) if is_kept] == [0, 5, 7, 8, 9]


def test_blocks_that_return_more_than_hidden_states_are_not_skipped():
    class Pair(nn.Module):
        def __init__(self, block: nn.Module):
            super().__init__()
            self.block = block

        def forward(self, hidden: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
            return (self.block(hidden, **options),)

    blocks = nn.ModuleList(Pair(nn.Identity()) for _ in range(8))
    decoder = nn.Module()
    decoder.layers = blocks
    for block in blocks:
        block.weight = nn.Parameter(torch.ones(1))
    with few_blocks(decoder) as are_few:
        assert are_few
        (hidden,) = decoder.layers[0](torch.ones(1, 2, 3))
        with pytest.raises(RuntimeError, match="Pair are not skipped"):
            decoder.layers[1](hidden)
