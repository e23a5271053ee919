"""The bank under the decoder: rows come and go, and each gets the tokens that it gets alone."""

import random

import pytest

import lorica
from lorica.formats.adapter_file import read
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from lorica.serve.bank import ServingBank
from lorica.serve.prepare import prepare
from lorica.serve.twin import twin
from tests.laws.bases import SIZES, method, move, small_llama

METHODS = ["lora", "dora", "ia3", "prefix_tuning", "adalora", "prompt_tuning", "bottleneck"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """What the bank takes, by key; two of LoRA."""
    other = twin(small_llama())
    forms = {}
    for i, name in enumerate([*METHODS, "lora"]):
        folder = tmp_path_factory.mktemp("adapters") / f"{i}"
        model = lorica.adapt(small_llama(), method(name))
        lorica.save(move(model, i, SIZES.get(name, 0.05)), folder)
        forms[f"{name}-{i}"] = prepare(other, read(folder), tokenizer=None)
    return forms


def request(i, keys):
    draw = random.Random(i)
    return Request(
        prompt=[draw.randrange(3, 500) for _ in range(draw.randrange(1, 24))],
        sampling=Sampling(
            max_new_tokens=draw.randrange(2, 12),
            temperature=draw.choice([0.0, 1.0]),
            seed=i,
        ),
        stops=Stops(None),
        adapter=draw.choice(keys),
    )


def test_rows_that_come_and_go_get_the_tokens_that_they_get_alone(adapters):
    """Adapters are added when a row first wants them, and removed when none uses them."""
    model = small_llama()
    bank = ServingBank(model)
    decoder = Decoder(model, slots=5, max_length=40, acting=bank.acting, chunk=16)
    keys = [None, *adapters]
    waiting = [request(i, keys) for i in range(24)]
    rows = []
    while waiting or decoder.rows:
        new = [waiting.pop() for _ in range(min(decoder.free, len(waiting), 1 + len(waiting) % 3))]
        for one in new:
            if one.adapter is not None and one.adapter not in bank.resident:
                bank.add(one.adapter, adapters[one.adapter])
        rows += decoder.admit(new)
        decoder.step()
        used = {row.request.adapter for row in decoder.rows}
        for key in [key for key in bank.resident if key not in used]:
            bank.remove(key)
    assert len(rows) == 24 and not bank.resident
    banks = {key: bank_of_one(key, adapters) for key in keys}
    for row in rows:
        assert row.tokens == alone(row.request, banks[row.request.adapter]), row.request.adapter


def bank_of_one(key, adapters):
    """A model of its own with one adapter, or with none."""
    bank = ServingBank(small_llama())
    if key is not None:
        bank.add(key, adapters[key])
    return bank


def alone(one, bank):
    decoder = Decoder(bank.model, slots=1, max_length=40, acting=bank.acting)
    (row,) = decoder.admit([one])
    while decoder.rows:
        decoder.step()
    return row.tokens


def test_another_adapter_gives_other_tokens(adapters):
    """So that a row that gets the adapter of another is seen above."""
    one = Request(
        prompt=[5, 9, 11],
        sampling=Sampling(max_new_tokens=11),
        stops=Stops(None),
        adapter="lora-0",
    )
    texts = {
        tuple(alone(one, bank_of_one("lora-0", {"lora-0": prepared})))
        for prepared in adapters.values()
    }
    assert len(texts) == len(adapters)
