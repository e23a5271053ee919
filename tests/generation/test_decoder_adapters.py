"""Adapters of every kind in slots: each row gets the tokens of its adapter alone."""

import gc
import weakref

import pytest
import torch

import lorica
from lorica.core.front import CACHED
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from tests.base.architectures import tiny, tokenizer
from tests.generation.test_decoder import prompt
from tests.laws.bases import move

METHODS = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "ia3": {},
    "bottleneck": {},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "llama_adapter": {"adapter_len": 3},
}
LENGTHS = (3, 19, 9, 30, 1)


def adapted(base: str, names):
    model = tiny(base)
    for name in names:
        lorica.adapt(model, lorica.method(name, **METHODS[name]), name=name)
        lorica.activate(model, name)
        move(model, size=0.3)
    return model


@torch.no_grad()
def alone(model, name, ids, count=10):
    """Greedy, without a key-value cache."""
    row = list(ids)
    with lorica.use(model, *([] if name is None else [name])):
        for _ in range(count):
            row.append(model(input_ids=torch.tensor([row])).logits[0, -1].argmax().item())
    return row[len(ids) :]


def decoder_of(model, **options) -> Decoder:
    return Decoder(model, max_length=60, acting=lambda names: lorica.mixed(model, names), **options)


def request(n, name) -> Request:
    sampling = Sampling(max_new_tokens=10)
    return Request(prompt=prompt(n), sampling=sampling, stops=Stops(tokenizer()), adapter=name)


@pytest.mark.parametrize("base", ["llama", "gemma3", "gpt2"])
def test_rows_of_any_adapters_share_passes(base):
    """Prompts are read in chunks of 8; fronts of different lengths stand before the rows."""
    names = [
        name
        for name in METHODS
        if base == "llama" or name in ("lora", "prefix_tuning", "prompt_tuning")
    ]
    model = adapted(base, names)
    wanted = [(n, name) for name in (*names, None) for n in LENGTHS[:3]]
    decoder, rows = decoder_of(model, slots=5, chunk=8), []
    while len(rows) < len(wanted) or decoder.rows:
        rows += decoder.admit([request(*w) for w in wanted[len(rows) :][: decoder.free]])
        decoder.step()
    for row, (n, name) in zip(rows, wanted, strict=True):
        assert row.tokens == alone(model, name, prompt(n)), (n, name)
    by_adapter = {name: row.tokens for row, (n, name) in zip(rows, wanted, strict=True) if n == 19}
    assert len(set(map(tuple, by_adapter.values()))) == len(by_adapter), "they write differently"


def test_the_front_of_an_adapter_that_is_gone_is_forgotten():
    """An adapter that comes to lie where another lay in memory must not get its front."""
    model = adapted("llama", ["prompt_tuning"])
    decoder = decoder_of(model, slots=2)
    decoder.admit([request(9, "prompt_tuning")])
    while decoder.rows:
        decoder.step()
    fronts = vars(decoder._forward.cache)[CACHED]
    (owner,) = fronts
    gone = weakref.ref(owner)
    del owner
    lorica.detach(model, "prompt_tuning")
    gc.collect()
    assert gone() is None and not fronts
