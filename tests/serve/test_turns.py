"""Requests of one tenant take a few threads, whatever they cost, and others find one."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from lorica.serve.refusals import TooManyRequests
from lorica.serve.turns import AT_ONCE, THREADS, WAITING, ClientGone, Turns
from tests.serve.live_server import TENANTS, Live, Tenant, create_gate, eventually, running
from tests.serve.word_engine import WordEngine


async def here() -> bool:
    return False


async def gone() -> bool:
    return True


def test_a_tenant_has_a_few_threads_and_a_line():
    asyncio.run(_check_lines())


async def _check_lines() -> None:
    turns, running_now, open_ = Turns(), [], threading.Event()

    def work(tenant: str) -> None:
        running_now.append(tenant)
        open_.wait(20)
        running_now.remove(tenant)

    first = [asyncio.create_task(turns.run("a", here, lambda: work("a"))) for _ in range(WAITING)]
    while len(running_now) < AT_ONCE:
        await asyncio.sleep(0.001)
    with pytest.raises(TooManyRequests):
        await turns.run("a", here, lambda: work("a"))
    assert await turns.run("b", here, lambda: len(running_now)) == AT_ONCE
    open_.set()
    await asyncio.gather(*first)
    assert not turns._lines, "nothing is kept of a tenant that has no request"


def test_a_request_whose_client_is_gone_is_not_read():
    with pytest.raises(ClientGone):
        asyncio.run(Turns().run("a", gone, lambda: pytest.fail("it is read")))


class SlowEngine(WordEngine):
    """Reads a prompt until `free` is set. read: how many it began to read."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.read = threading.Event(), 0

    def encode(self, model: str, prompt: str) -> tuple[int, ...]:
        if prompt == "slow":
            self.read += 1
            self.free.wait(20)
        return super().encode(model, prompt)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    engine = SlowEngine()
    monkeypatch.setitem(TENANTS, "key-other", Tenant("other"))
    with running(engine, create_gate(engine, keys=True)) as server:
        try:
            yield server
        finally:
            engine.free.set()


def ask(live: Live, key: str, prompt: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(live.host, live.port, timeout=20)
    body = json.dumps({"model": "alice", "prompt": prompt})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", body, headers)
    return connection


def status(connection: http.client.HTTPConnection) -> int:
    with closing(connection):
        return connection.getresponse().status


def test_slow_prompts_of_one_tenant_lock_nobody_out(live: Live):
    engine = live.engine
    assert isinstance(engine, SlowEngine)
    slow = [ask(live, "key-all", "slow") for _ in range(THREADS + 8)]
    assert eventually(lambda: engine.read == AT_ONCE)
    for connection in slow:
        connection.close()
    assert status(ask(live, "key-other", "quick")) == 200
    engine.free.set()
    assert status(ask(live, "key-all", "quick")) == 200
    assert engine.read == AT_ONCE, "those that hung up are not read"
    assert eventually(lambda: not engine.open)
