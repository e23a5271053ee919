"""A client that goes away frees what it held: at every chunk, in the queue, without a stream."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import openai
import pytest

from tests.serve.live_server import Live, eventually, running
from tests.serve.word_engine import WordEngine


@pytest.fixture
def live() -> Iterator[Live]:
    with running(WordEngine(slots=2, max_length=10_000, seconds_per_token=0.005)) as server:
        yield server


def ask(live: Live, **fields: object) -> http.client.HTTPConnection:
    """Send a request for a long answer, and leave the connection open."""
    body = {"model": "alice", "prompt": "long", "max_tokens": 4000, "stream": True, **fields}
    connection = http.client.HTTPConnection(live.host, live.port, timeout=20)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    return connection


def hang_up(connection: http.client.HTTPConnection, *, reset: bool = False) -> None:
    """Close it, by FIN, or by RST as when the process is killed with data unread."""
    if reset and connection.sock is not None:
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


@pytest.mark.parametrize("reset", [False, True])
def test_at_every_chunk(live, reset):
    for chunks in range(8):
        connection = ask(live)
        reply = connection.getresponse()
        seen = 0
        while seen < chunks:
            seen += reply.readline() == b"\n"
        reply.close()
        hang_up(connection, reset=reset)
        assert eventually(lambda: not live.engine.open), "its slot is free"
        assert live.engine.cancelled == chunks + 1
    assert live.engine.running == 0


def test_in_the_queue(live):
    running_ones = [ask(live), ask(live)]
    assert eventually(lambda: live.engine.running == 2)
    waiting = ask(live)
    waiting.getresponse().close()
    assert eventually(lambda: len(live.engine.open) == 3)
    hang_up(waiting)
    assert eventually(lambda: len(live.engine.open) == 2) and live.engine.cancelled == 1
    for connection in running_ones:
        hang_up(connection)
    assert eventually(lambda: not live.engine.open)


def test_without_a_stream_and_with_several_choices(live):
    for choices, fields in ((1, {"stream": False}), (3, {"n": 3}), (2, {"n": 2, "stream": False})):
        connection = ask(live, **fields)
        assert eventually(lambda: len(live.engine.open) > 0)
        assert len(live.engine.open) == choices
        hang_up(connection)
        assert eventually(lambda: not live.engine.open)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_whose_time_is_up(live, stream):
    live.engine.seconds_per_token = 60.0
    settings: dict[str, Any] = {"base_url": f"{live.url}/v1", "api_key": "-", "max_retries": 0}
    settings["timeout"] = openai.Timeout(20, read=0.3)
    with openai.OpenAI(**settings) as client, pytest.raises(openai.APITimeoutError):
        answer = client.completions.create(
            model="alice", prompt="long", max_tokens=1000, stream=stream
        )
        list(answer)
    assert eventually(lambda: live.engine.cancelled == 1) and not live.engine.open


def test_before_the_body_is_complete(live):
    with socket.create_connection((live.host, live.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
    assert live.engine.jobs == []


def test_an_answer_that_ended_is_not_cancelled(live):
    connection = ask(live, max_tokens=3)
    assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()
    assert live.engine.cancelled == 0 and live.engine.open == []


def test_a_client_that_does_not_read_is_cut_off(monkeypatch, caplog):
    monkeypatch.setattr("lorica.serve.connection.STALL_SECONDS", 0.2)
    body = {"model": "alice", "prompt": "long", "max_tokens": 4000, "n": 8, "stream": True}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(WordEngine(max_length=10_000)) as live, socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((live.host, live.port))
        lazy.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert eventually(lambda: len(live.engine.jobs) == 8)
        assert eventually(lambda: not live.engine.open)
        time.sleep(0.4)  # longer than it may stall
        received = b""
        with suppress(ConnectionResetError):
            while part := lazy.recv(2**16):
                received += part
    assert received.startswith(b"HTTP/1.1 200") and b"[DONE]" not in received
    assert "/v1/completions: the client did not read" in caplog.text
