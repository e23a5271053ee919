"""How long one request waits for its first token while another tenant sends 200, in decoder steps.

Steps, not seconds: what else the machine does changes neither their number nor their order.
"""

import asyncio
import random
import threading

import pytest

from lorica.base.load import load
from lorica.generation.sampling import Sampling
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.exchange import End, Job


class Counted:
    """Counts the steps of an engine, and those at which each prompt got its first token.

    before_slots: while it is held, no request gets a slot. A step counts from there on: a request
    that comes after that, and before the forward pass, is one for the next step.
    """

    def __init__(self, engine):
        self.started, self.firsts = 0, {}
        self.before_slots = threading.Lock()
        self._engine, self._admit, self._step = engine, engine._admit, engine._decoder.step
        engine._admit, engine._decoder.step = self.admit, self.step

    def admit(self):
        with self.before_slots:
            self._admit()
            self.started += bool(self._engine._rows)

    def step(self):
        rows = self._step()
        for row in rows:
            self.firsts.setdefault(row.request.prompt, self.started)
        return rows


@pytest.fixture
def engine(small_base):
    settings = EngineSettings(max_length=448, slots=8, max_queued=600, max_queued_per_tenant=300)
    engine = engine_of(load(str(small_base)), settings)
    engine.start()
    yield engine
    engine.close()


async def end_of(answer) -> End:
    async for event in answer:
        if isinstance(event, End):
            return event
    raise AssertionError("an answer without an end")


@pytest.mark.parametrize("prompts", [(2, 12), pytest.param((200, 380), marks=pytest.mark.slow)])
def test_the_first_token_comes_within_twice_the_steps_that_it_takes_alone(engine, prompts):
    """Each of the single requests is of another tenant, which has had nothing yet.

    They are fewer than the slots: as many may go ahead of a prompt that waits, and not one more.

    prompts: tokens of the others'. A long one that is being read is read to its end first: at most
    one more pass here, and one of those that decode.
    """
    counted, draw = Counted(engine), random.Random(0)
    lengths = (4, 200, 300) * 2  # of prompts: one pass reads 256 tokens

    def submit(tenant, length, tokens):
        prompt = tuple(draw.randrange(3, 360) for _ in range(length))
        sampling = Sampling(max_new_tokens=tokens)
        job = Job(tenant=tenant, model=engine.base_name, prompt=prompt, sampling=sampling)
        return prompt, engine.submit(job)

    async def steps_until_first_token(tenant, length):
        with counted.before_slots:
            before = counted.started
            prompt, answer = submit(tenant, length, 2)
        await end_of(answer)
        return counted.firsts[prompt] - before

    async def run():
        alone = [await steps_until_first_token(f"alone {i}", n) for i, n in enumerate(lengths)]
        many = [submit("many", draw.randint(*prompts), draw.randint(8, 60))[1] for _ in range(200)]
        ends = [asyncio.create_task(end_of(answer)) for answer in many]
        while engine.stats().queued > 180:
            await asyncio.sleep(0.001)
        beside = [await steps_until_first_token(f"beside {i}", n) for i, n in enumerate(lengths)]
        assert engine.stats().queued > 50, "the others still wait"
        for answer in many:
            answer.cancel()
        return alone, beside, await asyncio.gather(*ends)

    alone, beside, ends = asyncio.run(run())
    assert {end.reason for end in ends} <= {"length", "stop", "cancelled"}
    assert alone == [1, 1, 2] * 2
    more = 2 if prompts[1] > 256 else 0
    assert all(b <= 2 * a + more for a, b in zip(alone, beside, strict=True)), beside
