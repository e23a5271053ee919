"""A server under load for a while: 16 streams over 20 adapters, with loads and unloads.

It goes on until enough is answered. Every reply is compared with its solo answer.
"""

import asyncio
import random
import time
from collections import Counter
from itertools import count

import httpx2
import pytest

from tests.marks import at_length
from tests.serve.real_server import body_of, complete_when_there, problem_of, serving
from tests.serve.shelf import stock
from tests.serve.traffic import asks

SECONDS = at_length(600.0, 30.0)
STREAMS = 16
TWENTY = {"lora": 5, "dora": 4, "adalora": 2, "pissa": 2, "ia3": 3, "prefix_tuning": 3}
TWENTY |= {"hyperlora": 1}
ENOUGH = at_length(600, 200)
"""Requests with a whole reply."""


class Soak:
    """counts: of what was done. problems: replies that are not their solo answer."""

    def __init__(self, server, shelf, seconds, requests):
        self.server, self.shelf, self.requests = server, shelf, requests
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.asks = self._asks()

    def _asks(self):
        for seed in count():
            yield from asks(self.shelf, 500, seed)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until and self.counts["requests"] >= self.requests

    async def run(self):
        limits = httpx2.Limits(max_connections=2 * STREAMS)
        async with (
            httpx2.AsyncClient(base_url=self.server.url, timeout=60, limits=limits) as client,
            httpx2.AsyncClient(base_url=self.server.admin, timeout=60) as operator,
        ):
            await asyncio.gather(
                self._change(operator), *(self._ask(client) for _ in range(STREAMS))
            )

    async def _ask(self, client):
        for number in count():
            if self.is_over:
                return
            ask = next(self.asks)
            body = body_of(ask, self.shelf, self.server.base_name, stream=number % 4 > 0)
            hang_up_after = None if ask.cancel_after is None else 1 + ask.cancel_after
            reply, refused = await complete_when_there(client, body, hang_up_after)
            self.counts["refused while unloaded"] += refused
            self.counts["requests" if reply.is_whole else "hung up"] += 1
            self.counts["tokens"] += 0 if reply.error else len(reply.tokens)
            if problem := problem_of(ask, reply, self.shelf):
                self.problems.append(problem)

    async def _change(self, operator):
        """Replace, unload and load adapters."""
        draw = random.Random(0)
        while not self.is_over:
            alias = draw.choice(list(self.shelf.folders))
            path = f"/admin/adapters/{alias}"
            folder = draw.choice(self.shelf.folders[alias]).name
            if len(self.shelf.folders[alias]) > 1:
                cards = (await operator.get("/admin/adapters")).json()["data"]
                number = next(card["generation"] for card in cards if card["id"] == alias)
                body = {"expected_generation": number, "folder": folder}
                replies = {"replaced": await operator.put(path, json=body)}
            else:
                replies = {"unloaded": await operator.delete(path)}
                body = {"name": alias, "folder": folder}
                replies["loaded"] = await operator.post("/admin/adapters", json=body)
            for what, reply in replies.items():
                self.counts[what] += 1
                if reply.status_code >= 300:
                    self.problems.append(f"{what} {alias}: {reply.status_code} {reply.text}")
            await asyncio.sleep(0.1 * draw.random())


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 400)
def test_nothing_is_lost(small_base, tmp_path):
    shelf = stock(tmp_path / "root", TWENTY, twice=5, prompts=(4, 12, 60), tokens=24)
    options = "--slots", "16", "--memory", "0.0003"
    with serving(small_base, tmp_path / "root", tmp_path / "log", *options) as server:
        halves, memory = [], []
        for _ in range(2):  # in the first one threads, caches and the heap still grow
            halves.append(Soak(server, shelf, SECONDS / 2, ENOUGH // 2))
            asyncio.run(halves[-1].run())
            memory.append(server.resident_mib)
        ready = httpx2.get(f"{server.url}/health/ready")
        figures = httpx2.get(f"{server.url}/metrics").text
    print(*(dict(half.counts) for half in halves), memory)
    assert [problem for half in halves for problem in half.problems] == []
    assert ready.status_code == 200
    values = dict(line.rsplit(" ", 1) for line in figures.splitlines() if line[0] != "#")
    assert float(values["lorica_requests_waiting"]) == 0 == float(values["lorica_requests_running"])
    assert float(values["lorica_adapter_evictions_total"]) > ENOUGH / 100
    assert memory[1] < 1.08 * memory[0]
