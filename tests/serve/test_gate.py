"""Who may ask what, from where, and how much of it."""

import http.client
import json
import logging
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from lorica.serve import connection, gate
from lorica.serve.limits import Limits
from tests.serve.live_server import Live, create_gate, eventually, running
from tests.serve.word_engine import WordEngine

ALL, ALICE = {"Authorization": "Bearer key-all"}, {"Authorization": "Bearer key-alice"}
BODY = {"model": "alice", "prompt": "x"}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    engine = WordEngine()
    with running(engine, create_gate(engine, keys=True)) as server:
        yield server


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route, from the schema and from the table, hidden ones too."""
    paths = {
        (method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item
    }
    pending, seen = list(app.routes), []
    while pending:
        route = pending.pop()
        if isinstance(route, APIRoute):
            seen += [(method, route.path) for method in route.methods]
        elif hasattr(route, "original_router"):
            pending += route.original_router.routes
        else:
            seen.append(("GET", route.path))
    seen = [(method, path.replace(":path}", "}")) for method, path in seen]
    assert paths <= set(seen)
    return seen


def test_every_route_needs_a_key_unless_it_is_listed_as_public():
    guarded = create_gate(WordEngine(), keys=True)
    routes = routes_of(guarded.app)
    assert len(routes) > 8 and ("POST", "/v1/completions") in routes
    with TestClient(guarded, base_url="http://localhost") as client:
        for method, path in routes:
            status = client.request(method, path.replace("{model}", "alice")).status_code
            if path in guarded.rules.public:
                assert status == 200, path
            else:
                assert status == 401, path
    public = set(guarded.rules.public)
    assert {"/", "/health/live", "/health/ready"} <= public
    assert all(path == "/" or path.startswith(("/page/", "/health/")) for path in public)


def test_a_route_that_somebody_adds_is_closed():
    guarded = create_gate(WordEngine(), keys=True)
    guarded.app.add_api_route("/v1/debug", lambda: "secrets")
    with TestClient(guarded, base_url="http://localhost") as client:
        assert client.get("/v1/debug").status_code == 401
        assert client.get("/v1/debug", headers=ALL).status_code == 200
        for path in (
            "/health/../v1/debug",
            "//v1/debug",
            "/v1/debug/",
            "/health/live/../../v1/debug",
        ):
            assert client.get(path).status_code == 401


def test_a_wrong_key_is_named_and_never_repeated(live):
    reply = httpx2.get(f"{live.url}/v1/models", headers={"Authorization": "Bearer hunter2"})
    assert reply.status_code == 401 and "hunter2" not in reply.text
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_tenant_sees_its_models_alone(live):
    listed = httpx2.get(f"{live.url}/v1/models", headers=ALICE).json()["data"]
    assert [model["id"] for model in listed] == ["alice"]
    assert len(httpx2.get(f"{live.url}/v1/models", headers=ALL).json()["data"]) == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/models/"])
def test_forbidden_and_unknown_models_look_alike(live, path):
    """hyper exists and may not be used by this key; hyperx does not exist."""
    replies = []
    for model in ("hyper", "hyperx", "hyper:ve-ol", "hyper:nope", "org/base"):
        if path.endswith("models/"):
            reply = httpx2.get(f"{live.url}{path}{model}", headers=ALICE)
        else:
            body = {"model": model, "prompt": "x"}
            if "chat" in path:
                body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            reply = httpx2.post(f"{live.url}{path}", headers=ALICE, json=body)
        headers = {k: v for k, v in reply.headers.items() if k not in ("date", "x-request-id")}
        headers.pop("content-length")
        replies.append((reply.status_code, reply.text.replace(f"'{model}'", "MODEL"), headers))
    assert replies[0][0] == 404
    assert all(reply == replies[0] for reply in replies)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1:8000@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "LOCALHOST:123"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_host_and_origin(live, headers, status):
    host, port = live.host, live.port
    asking = http.client.HTTPConnection(host, port)
    asking.putrequest("GET", "/health/live", skip_host=True)
    for name, value in ({"Host": "localhost"} | headers).items():
        asking.putheader(name, value)
    asking.endheaders()
    reply = asking.getresponse()
    body = json.loads(reply.read())
    assert reply.status == status
    if status == 403:
        assert body["error"]["code"] in ("host_not_allowed", "origin_not_allowed")
    assert reply.getheader("access-control-allow-origin") is None
    asking.close()


def test_addresses_are_hosts_only_where_any_address_is_bound():
    for any_address, status in ((True, 200), (False, 403)):
        rules = gate.Rules(
            authenticate=lambda header: None,
            public=("/health/live",),
            always=(),
            any_address=any_address,
        )
        engine = WordEngine()
        guarded = gate.Gate(create_gate(engine).app, rules, engine, lambda status: None)
        with TestClient(guarded, base_url="http://10.0.0.7") as client:
            assert client.get("/health/live").status_code == status


def test_a_preflight_of_another_site_gets_nothing(live):
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    reply = httpx2.options(f"{live.url}/v1/completions", headers=headers)
    assert reply.status_code == 403
    assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"", "application/json", 400, "JSON object"),
        (b"[]", "application/json", 400, "object"),
        (b'{"model": "alice", "prompt": "x"}', "text/plain", 400, "application/json"),
        (b'{"model": "alice", "model": "b", "prompt": "x"}', "application/json", 400, "twice"),
        (b'{"model": "alice", "prompt": "x", "seed": NaN}', "application/json", 400, "NaN"),
        (b'{"model": "alice", "prompt": "\\ud800"}', "application/json", 400, "surrogate"),
        (b"\xff\xfe", "application/json", 400, "not valid JSON"),
        (b'{"model": ' + b"[" * 100_000, "application/json", 400, "nested"),
        (b'{"prompt": ' + b"[" * 30 + b"]" * 30 + b"}", "application/json", 400, "nested"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "application/json", 400, "digits"),
        (b" " * (Limits().body + 1), "application/json", 413, "larger"),
    ],
)
def test_bad_bodies(live, content, kind, status, words):
    headers = {**ALL, "Content-Type": kind}
    reply = httpx2.post(f"{live.url}/v1/completions", content=content, headers=headers)
    error = reply.json()["error"]
    assert (reply.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert words in error["message"]


def test_a_body_without_a_length_is_limited_too(live):
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 2**16

    with httpx2.Client() as client:
        try:
            reply = client.post(f"{live.url}/v1/completions", content=endless(), headers=ALL)
        except (httpx2.WriteError, httpx2.ReadError):
            return  # closed while it was still being sent
        assert reply.status_code == 413


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"echo": True}, "echo is not supported"),
        ({"best_of": True}, "best_of is not supported"),
        ({"temprature": 1}, "leave it out; similar: temperature."),
        ({"x": "y"}, "Fix: leave it out."),
        ({"temperature": "1"}, "temperature: it must be a number"),
        ({"temperature": 2.5}, "temperature: it must be at most 2."),
        ({"n": 9}, "n: "),
        ({"n": True}, "n: it must be a whole number"),
        ({"max_tokens": 0}, "max_tokens: it must be at least 1."),
        ({"max_tokens": 10**9}, "max_tokens: it must be at most 4,096."),
        ({"logprobs": 21}, "logprobs: "),
        ({"stop": ["x"] * 5}, "stop: the list may have at most 4 entries, and has 5."),
        ({"stop": 5}, "stop: it must be a list."),
        ({"stop": [""]}, "stop.0: it must not be empty"),
        ({"stop": "x" * 129}, "stop.0: "),
        ({"stream_options": {"include_usage": True}}, "add stream: true"),
        ({"stream_options": {"x": True}, "stream": True}, "'x' is unknown"),
        ({"prompt": []}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["x"] * 9}, "at most 8"),
        ({"seed": -1}, "seed: "),
        ({"model": ""}, "model: "),
    ],
)
def test_what_is_not_supported_is_refused_by_name(live, field, words):
    reply = httpx2.post(f"{live.url}/v1/completions", json=BODY | field, headers=ALL)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert words in error["message"]
    assert error["param"] and error["param"].split(".")[0] in [*field, "x"]


@pytest.mark.parametrize(
    "field",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1, "echo": False},
        {"logit_bias": None, "suffix": None, "temperature": None, "n": None, "stop": None},
        {"top_k": 5, "seed": 2**63 - 1},
    ],
)
def test_what_changes_nothing_is_accepted(live, field):
    if "top_k" in field:
        pytest.importorskip("lorica.generation.decoder")
    reply = httpx2.post(f"{live.url}/v1/completions", json=BODY | field, headers=ALL)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/metrics", 403, "not_an_operator"),
        ("GET", "/v1/models/", 404, "model_not_found"),
    ],
)
def test_what_is_no_route_has_the_envelope(live, method, path, status, code):
    reply = httpx2.request(method, f"{live.url}{path}", headers=ALL)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_the_page_is_served_with_its_headers_and_no_file_is_opened_by_name(live):
    reply = httpx2.get(f"{live.url}/")
    assert reply.status_code == 200 and reply.text.lower().startswith("<!doctype html>")
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    for path in ("/page/../http.py", "/page/%2e%2e/http.py", "/page/__init__.py", "/page/"):
        assert httpx2.get(f"{live.url}{path}", headers=ALL).status_code == 404


def test_the_log_has_no_prompt_and_no_key(live, caplog):
    caplog.set_level(logging.INFO, "lorica.serve")
    body = BODY | {"prompt": "PROMPT-SECRET"}
    httpx2.post(f"{live.url}/v1/completions?api_key=QUERY", json=body, headers=ALL)
    httpx2.post(f"{live.url}/v1/completions", content=b"PROMPT-SECRET", headers=ALL)
    assert eventually(lambda: caplog.text.count("/v1/completions") == 2)
    assert "tenant=all" in caplog.text and "model='alice' generation=3" in caplog.text
    assert not [word for word in ("SECRET", "key-all", "QUERY") if word in caplog.text]


def test_an_adapter_that_failed_is_not_listed():
    engine = WordEngine()
    engine.models["broken"] = replace(engine.models["alice"], name="broken", state="failed")
    with TestClient(create_gate(engine), base_url="http://localhost") as client:
        models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert models == ["org/base", "alice", "hyper:ve-ol"]


def test_the_log_says_why_nothing_was_answered(caplog):
    caplog.set_level(logging.INFO, "lorica.serve")
    engine = WordEngine()
    with TestClient(create_gate(engine), base_url="http://localhost") as client:
        for prompt in ("long fail", "long raise"):
            body = BODY | {"prompt": prompt, "stream": True, "max_tokens": 9}
            client.post("/v1/completions", json=body)
        client.get("/", headers={"Host": "evil.example"})
        engine.is_draining = True
        client.post("/v1/completions", json=BODY)
        client.get("/health/ready")
    failed, raised, host, stopping, ready = (
        record.message for record in caplog.records if " id=" in record.message
    )
    assert "error 'the fake failed.'" in failed and "internal_error" in raised
    assert "403" in host and "host_not_allowed" in host
    assert "unavailable 'the server is stopping.'" in stopping
    assert "503" in ready and " draining " in ready


def test_no_new_requests_while_the_server_starts_or_stops():
    engine = WordEngine()
    with TestClient(create_gate(engine), base_url="http://localhost") as client:
        assert client.get("/health/ready").json() == {"status": "ready"}
        for state in ("starting", "draining"):
            engine.is_ready, engine.is_draining = state != "starting", state == "draining"
            reply = client.post("/v1/completions", json=BODY)
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "unavailable"
            ready = client.get("/health/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": state})
            assert client.get("/health/live").status_code == 200
            assert client.get("/metrics").status_code == 200
            assert client.get("/").status_code == 200


# -- slow and broken clients ----------------------------------------------------------------------


@contextmanager
def raw(live: Live) -> Iterator[socket.socket]:
    with socket.create_connection((live.host, live.port), timeout=20) as connected:
        yield connected


def closed_after(connected: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while True:
        try:
            data = connected.recv(4096)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


def test_a_slow_header_is_cut_off(live, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.6)
    with raw(live) as silent, raw(live) as slow:
        slow.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        assert closed_after(silent) == closed_after(slow) == b""
    with raw(live) as second:  # also the second request of a connection
        second.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += second.recv(4096)
        second.sendall(b"GET /hea")
        assert closed_after(second) == b""


def test_a_slow_body_is_cut_off(live, monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.6)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    with raw(live) as slow:
        slow.sendall(f"{head}Authorization: Bearer key-all\r\n\r\n{{".encode())
        assert b"408 Request Timeout" in closed_after(slow)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(live, garbage):
    received = send_raw(live, garbage + b"\r\n\r\n")
    assert b" 400 " in received.split(b"\r\n")[0]
    assert json.loads(received.split(b"\r\n\r\n")[1])["error"]["type"] == "invalid_request_error"


def test_a_header_without_end_is_refused(live):
    received = send_raw(live, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20)
    assert b" 200 " not in received, "refused, unless the reply is lost with the connection"


def send_raw(live: Live, data: bytes) -> bytes:
    """What the server replies to bytes."""
    with raw(live) as connected:
        with suppress(OSError):  # the server may have closed it already
            connected.sendall(data)
            connected.shutdown(socket.SHUT_WR)
        return closed_after(connected)


def test_too_many_connections_are_closed(live, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 0)
    with raw(live) as extra:
        assert closed_after(extra) == b""


def test_curl(live):
    command = ["curl", "-sS", "--no-buffer", "-H", "Authorization: Bearer key-all"]
    command += ["-H", "Content-Type: application/json", f"{live.url}/v1/completions"]
    body = json.dumps(BODY | {"stream": True})
    try:
        done = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("curl is not here")
    assert done.stdout.startswith("data: {") and done.stdout.endswith("data: [DONE]\n\n")
