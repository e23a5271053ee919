"""A model that is replaced while a request is accepted: one generation writes all of the reply."""

from dataclasses import replace

import httpx2
import pytest

from tests.serve.live_server import running
from tests.serve.word_engine import WordEngine

BODY = {"model": "alice", "prompt": "long", "max_tokens": 3, "n": 2, "seed": 1}


class ReplacedEngine(WordEngine):
    """Alice gets a new generation when these prompts, by number, are tokenized."""

    def __init__(self, *after: int):
        super().__init__()
        self.after, self.encoded = after, 0

    def encode(self, model, prompt):
        self.encoded += 1
        if self.encoded in self.after:
            alice = self.models["alice"]
            self.models["alice"] = replace(alice, generation=alice.generation + 1)
        return super().encode(model, prompt)


@pytest.mark.parametrize("after", [(), (1,), (1, 2)])
def test_every_answer_of_a_request_is_of_the_generation_that_it_names(after):
    engine = ReplacedEngine(*after)
    first = engine.models["alice"].generation
    with running(engine) as live:
        reply = httpx2.post(f"{live.url}/v1/completions", json=BODY).json()
    assert len(reply["choices"]) == 2 and engine.encoded == 1 + len(after)
    assert reply["lorica"]["generation"] == first + len(after)
    assert len(engine.jobs) == 2, "nothing is submitted with the prompt of another generation"
    assert engine.open == []


def test_one_that_is_replaced_all_the_time_is_unavailable():
    engine = ReplacedEngine(*range(1, 100))
    with running(engine) as live:
        reply = httpx2.post(f"{live.url}/v1/completions", json=BODY)
    assert reply.status_code == 503 and "retry-after" in reply.headers
    assert "is being replaced" in reply.json()["error"]["message"]
    assert engine.open == engine.jobs == []
