"""Accepting a request: all of its answers or none, refusals as such, and nobody's answers end."""

import asyncio
import json
import threading

import httpx2
import pytest

from lorica.serve.accept import Acceptor
from lorica.serve.exchange import End
from lorica.serve.metrics import Metrics
from lorica.serve.openai_api import CompletionBody
from lorica.serve.residency import NoRoom
from tests.serve.live_server import eventually, running
from tests.serve.word_engine import WordAnswer, WordEngine

BODY = {"model": "alice", "prompt": "long", "max_tokens": 3}


class SlowEngine(WordEngine):
    """Takes jobs only when `goes_on` is set."""

    def __init__(self):
        super().__init__()
        self.is_asked, self.goes_on = threading.Event(), threading.Event()
        self.cancelled_answers = 0

    def submit(self, job):
        self.is_asked.set()
        self.goes_on.wait(20)
        answer = super().submit(job)
        own = answer.cancel

        def cancel():
            self.cancelled_answers += 1
            own()

        answer.cancel = cancel
        return answer


@pytest.mark.parametrize("cancelled", ["before", "after"])
def test_a_request_that_is_cancelled_while_it_is_accepted_does_not_run_on(cancelled):
    """As at shutdown: its task ends, and its thread does not."""
    engine = SlowEngine()
    acceptor = Acceptor(engine=engine, metrics=Metrics(engine), deadline=60.0)

    async def here() -> bool:
        return False

    async def run() -> None:
        from tests.serve.live_server import Tenant

        body = CompletionBody(**BODY, n=2)
        task = asyncio.create_task(acceptor.accept(body, Tenant("t"), "id", here))
        assert await asyncio.to_thread(engine.is_asked.wait, 20)
        if cancelled == "before":
            task.cancel()
            await asyncio.sleep(0)
        engine.goes_on.set()
        if cancelled == "after":
            # The reply is on its way to the loop, which has no turn before the cancel.
            assert eventually(lambda: len(engine.open) == 2)
            assert eventually(lambda: acceptor.turns._threads._work_queue.empty())
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert eventually(lambda: engine.cancelled_answers == 2)


class FullEngine(WordEngine):
    """Its adapters find no room."""

    def submit(self, job):
        return FullAnswer(self, job, super().submit(job).served)


class FullAnswer(WordAnswer):
    async def __aiter__(self):
        refusal = NoRoom()
        yield End("error", 1, 0, refusal.what, refusal)


def test_an_adapter_that_finds_no_room_is_a_503_to_be_tried_again():
    with running(FullEngine(), drain_timeout=0.0) as live:
        reply = httpx2.post(f"{live.url}/v1/completions", json=BODY)
        stream = httpx2.post(f"{live.url}/v1/completions", json={**BODY, "stream": True})
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 5
    error = reply.json()["error"]
    assert error["code"] == "unavailable" and "memory for adapters is full" in error["message"]
    *_, last = (line for line in stream.text.splitlines() if line)
    assert json.loads(last.removeprefix("data: "))["error"] == error
    assert "[DONE]" not in stream.text
