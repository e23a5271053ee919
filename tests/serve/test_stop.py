"""How a server stops: its streams end well or with an error event, whatever the signal."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from lorica.serve.run import HUNG
from tests.serve.live_server import eventually, running
from tests.serve.word_engine import WordEngine


@contextmanager
def server(drain_timeout: float, *more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """(process, URL) of a server that answers."""
    command = [sys.executable, "-m", "tests.serve.word_server", str(drain_timeout), *more]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        assert eventually(lambda: status(f"{url}/health/ready") == 200, 60)
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def status(url: str) -> int | None:
    try:
        return httpx2.get(url, timeout=10).status_code
    except httpx2.ConnectError:
        return None


class Streaming(threading.Thread):
    """A stream that is read on a thread. events: the data of each."""

    def __init__(self, url: str, tokens: int):
        super().__init__(daemon=True)
        self.url, self.events, self.error = url, [], None
        self.body = {"model": "alice", "prompt": "long", "max_tokens": tokens, "stream": True}
        self.start()
        assert eventually(lambda: len(self.events) > 0)

    def run(self) -> None:
        url = f"{self.url}/v1/completions"
        try:
            with httpx2.stream("POST", url, json=self.body, timeout=60) as reply:
                for line in reply.iter_lines():
                    if line:
                        self.events.append(line.removeprefix("data: "))
        except httpx2.HTTPError as error:
            self.error = error


def test_a_stop_ends_no_stream_without_a_word():
    """Here in this process; below by signals."""
    engine = WordEngine(slots=2, max_length=20_000, seconds_per_token=0.01)
    with running(engine, drain_timeout=0.1) as live:
        short, long = Streaming(live.url, 5), Streaming(live.url, 4000)
        queued = Streaming(live.url, 4000)
    for stream in (short, long, queued):
        stream.join(20)
        assert stream.error is None
    assert short.events[-1] == "[DONE]"
    for stream in (long, queued):
        assert json.loads(stream.events[-1])["error"]["code"] == "unavailable"


@pytest.mark.slow
def test_sigterm_lets_streams_finish_and_refuses_new_requests():
    with server(drain_timeout=30) as (process, url):
        tokens = 300  # six seconds, for what is asked meanwhile
        streams = [Streaming(url, tokens) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: status(f"{url}/health/ready") == 503)
        body = {"model": "alice", "prompt": "x"}
        refused = httpx2.post(f"{url}/v1/completions", json=body)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert status(f"{url}/health/live") == 200
        for stream in streams:
            stream.join(60)
            assert stream.error is None and stream.events[-1] == "[DONE]"
            assert json.loads(stream.events[-2])["choices"][0]["finish_reason"] == "length"
            assert len(stream.events) == 1 + tokens + 2
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "cut 0\n"
    assert err.strip() == "lorica serve: SIGTERM: no new requests; answers have 30 s to finish"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_does_not_finish_gets_an_error_event(number):
    with server(drain_timeout=0.3) as (process, url):
        streams = [Streaming(url, 4000) for _ in range(10)]  # two of them wait for a slot
        process.send_signal(number)
        for stream in streams:
            stream.join(60)
            assert stream.error is None, "the stream ends as HTTP says"
            error = json.loads(stream.events[-1])["error"]
            assert (error["code"], error["type"]) == ("unavailable", "server_error")
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "cut 10\n"


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once():
    with server(drain_timeout=600) as (process, url):
        stream = Streaming(url, 4000)
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: status(f"{url}/health/ready") == 503)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        stream.join(30)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.strip().endswith("a second SIGTERM: ended at once")
    assert stream.error is not None, "cut, and the client sees that"


@pytest.mark.slow
def test_sighup_ends_nothing():
    with server(drain_timeout=30) as (process, url):
        stream = Streaming(url, 60)
        process.send_signal(signal.SIGHUP)
        stream.join(60)
        assert stream.error is None and stream.events[-1] == "[DONE]"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "hangup\ncut 0\n"


@pytest.mark.slow
def test_a_process_in_which_everything_hangs_ends():
    """40 requests hang on their threads, and the drain too."""
    with server(0.3, "hang") as (process, url):
        for _ in range(40):
            threading.Thread(target=ask_in_vain, args=[url], daemon=True).start()
        time.sleep(0.5)
        assert status(f"{url}/health/ready") == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == HUNG
    assert err.strip().endswith("lorica serve: something hangs after SIGTERM: ended")


def ask_in_vain(url: str) -> None:
    with suppress(httpx2.HTTPError):
        httpx2.post(f"{url}/v1/completions", json={"model": "alice", "prompt": "x"}, timeout=30)
