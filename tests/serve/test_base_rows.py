"""Rows of the base, decoded beside adapters, have the bits of a model that never saw an adapter."""

import random

import pytest
import torch

from lorica.base.load import load
from lorica.formats.adapter_file import read
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from lorica.serve.bank import ServingBank
from lorica.serve.prepare import prepare
from lorica.serve.twin import twin
from tests import small_base
from tests.marks import slow_but
from tests.serve.shelf import CONDITIONS, SETTINGS, write

TOKENS = (3, 40, 7, 1, 90, 12, 5, 33, 8)


class Recorded(Decoder):
    """Keeps the logits of each pass, by the number of the request."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.numbers: dict[object, int] = {}
        whole = self._forward.last_logits

        def last_logits(first, ids, *places):
            logits = whole(first, ids, *places)
            for row, own in zip(self._rows[first:], logits, strict=False):
                self.logits.setdefault(self.numbers[row], []).append(own.clone())
            return logits

        self._forward.last_logits = last_logits  # type: ignore[method-assign]

    def write(self, requests):
        waiting = list(enumerate(requests))
        while waiting or self.rows:
            new = [waiting.pop(0) for _ in range(min(self.free, len(waiting)))]
            rows = self.admit([request for _, request in new])
            self.numbers |= {row: number for row, (number, _) in zip(rows, new, strict=True)}
            self.step()
        return self.logits


def requests(keys):
    """Prompts and answers of many lengths, so that rows end, move, and are read in chunks."""
    draw = random.Random(0)
    return [
        Request(
            prompt=[draw.randrange(3, small_base.VOCABULARY) for _ in range(length)],
            sampling=Sampling(max_new_tokens=2 + 3 * (i % 5), temperature=i % 2, seed=i),
            stops=Stops(None),
            adapter=keys[i % len(keys)],
        )
        for i, length in enumerate(TOKENS * 2)
    ]


DECODER = {"slots": 5, "max_length": 128, "chunk": 16}


@pytest.fixture(scope="module")
def plain(small_base):
    """The logits of a model that never saw an adapter."""
    return Recorded(load(str(small_base)).model, **DECODER).write(requests([None]))


@pytest.mark.parametrize(
    "kind", slow_but(("lora", "prefix_tuning", "every method"), [*SETTINGS, "every method"])
)
def test_base_rows_are_bitwise_those_of_a_model_without_adapters(kind, plain, small_base, tmp_path):
    loaded = load(str(small_base))
    other, bank = twin(loaded.model), ServingBank(loaded.model)
    for name in SETTINGS if kind == "every method" else (kind,):
        write(tmp_path / name, name, seed=1)
        condition = CONDITIONS[0] if name == "hyperlora" else None
        file = read(tmp_path / name)
        bank.add(name, prepare(other, file, tokenizer=loaded.tokenizer, condition=condition))
    keys = [key for name in bank.resident for key in (None, name)]
    mixed = Recorded(loaded.model, acting=bank.acting, **DECODER).write(requests(keys))
    differing = []
    for number, request in enumerate(requests(keys)):
        assert len(mixed[number]) == len(plain[number]), "the batches have the same shapes"
        same = all(torch.equal(a, b) for a, b in zip(mixed[number], plain[number], strict=True))
        assert same or request.adapter is not None, f"request {number} of the base"
        differing.append(not same)
    assert sum(differing) == sum(request.adapter is not None for request in requests(keys))
