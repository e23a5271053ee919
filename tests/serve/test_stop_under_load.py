"""SIGTERM to `lorica serve` under load: a request gets its answer, or an error with the reason."""

import asyncio
import signal

import httpx2
import pytest

from tests.serve.real_server import accepted, complete, serving
from tests.serve.shelf import stock

STREAMS, WHOLE = 40, 8


@pytest.mark.slow
@pytest.mark.parametrize("drain_seconds", [0.5, 600])
def test_no_request_is_cut_without_a_word(drain_seconds, small_base, tmp_path):
    root = tmp_path / "root"
    models = list(
        stock(
            root, {"lora": 1, "ia3": 1, "prefix_tuning": 1}, twice=0, prompts=(4,), tokens=1
        ).folders
    )
    options = "--slots", "12", "--drain_timeout", str(drain_seconds)

    async def run(server):
        limits = httpx2.Limits(max_connections=STREAMS + WHOLE)
        async with httpx2.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
            tasks = [
                asyncio.create_task(
                    complete(
                        client,
                        {
                            "model": models[number % len(models)],
                            "prompt": "Once",
                            "max_tokens": 40 if number % 5 == 0 else 400,
                            "temperature": 0,
                            "stream": number < STREAMS,
                        },
                    )
                )
                for number in range(STREAMS + WHOLE)
            ]
            while accepted((await client.get("/metrics")).text) < STREAMS + WHOLE:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks)

    with serving(small_base, root, tmp_path / "log", *options) as server:
        replies = asyncio.run(run(server))
        status = server.process.wait(30)
    assert status == 0
    assert all(reply.is_whole for reply in replies), "a stream that was cut raises or is not whole"
    failed = [reply.error for reply in replies if reply.error is not None]
    assert {error["code"] for error in failed} <= {"unavailable"}
    assert {reply.status for reply in replies[:STREAMS]} == {200}
    assert {reply.status for reply in replies[STREAMS:]} <= {200, 503}
    complete_ones = [reply for reply in replies if reply.error is None]
    assert {reply.reason for reply in complete_ones} <= {"length", "stop"}
    assert bool(failed) == (drain_seconds < 1)
    log = (tmp_path / "log").read_text()
    assert ("no time to finish" in log) == bool(failed)
