"""Requests that no client would send: no bug is met, and no file or connection is opened."""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorica.serve.apps import admin_gate
from lorica.serve.auth import Access
from lorica.serve.gate import Gate
from lorica.serve.metrics import Metrics
from tests.marks import at_length
from tests.serve.fake_engine import Serving, write_adapter
from tests.serve.live_server import create_gate
from tests.serve.word_engine import WordEngine

PIECES = [
    *["alice", "org/base", "hyper:ve-ol", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd"],
    *["http://127.0.0.1:1/", "\x00", "", "é" * 50, "{{7*7}}", "%s%n", "-1", "a" * 3000, "\\u0000"],
    *[0, -1, 1, 2**63, 1.5, 1e308, True, False, None, [], {}, [[]], ["x"], [{"role": "user"}]],
    *[{"role": "user", "content": "x"}, [{"role": "user", "content": "x"}], {"type": "text"}],
    *[{"include_usage": True}, [1, 2, 3], [[1], [2]], {"a": {"b": [1, {"c": None}]}}],
]
FIELDS = [
    *["model", "prompt", "messages", "stream", "stream_options", "n", "max_tokens", "temperature"],
    *["top_p", "top_k", "seed", "stop", "logprobs", "top_logprobs", "max_completion_tokens"],
    *["chat_template", "user", "tools", "echo", "lora_path", "file", "url", "image_url", "x"],
]
WATCHED = ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "import")


class Watch:
    """Events of the interpreter while it is on: what is opened, connected to, or run."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.is_on = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.is_on and event.startswith(WATCHED):
            self.events.append((event, repr(arguments)[:200]))

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


WATCH = Watch()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    sys.addaudithook(WATCH)  # it cannot be removed: off, it costs a comparison
    with TestClient(create_gate(WordEngine()), base_url="http://localhost") as client:
        yield client


def random_body(draw: random.Random, path: str) -> bytes:
    """A body that is wrong in one to three places, sometimes in its bytes."""
    body: dict = {"model": "alice", "prompt": "hello", "max_tokens": 3}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "hello"}]
        del body["prompt"]
    for _ in range(draw.randint(1, 3)):
        body[draw.choice(FIELDS)] = draw.choice(PIECES)
    data = bytearray(json.dumps(body).encode())
    if draw.random() < 0.2:
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def test_no_request_meets_a_bug_or_opens_anything(client):
    draw = random.Random(14)
    warm = {"model": "alice", "prompt": "x", "stream": True}
    for path in ("/v1/completions", "/v1/chat/completions"):  # what is imported at the first use
        client.post(path, json=warm), client.post(path, json={}), client.post(path, content=b"{")
    for path in ("/v1/models/x", "/metrics", "/", "/nope"):
        client.get(path)
    statuses: dict[int, int] = {}
    with WATCH.watching():
        for _ in range(500):
            path = draw.choice(["/v1/completions", "/v1/chat/completions"])
            kind = draw.choice(["application/json"] * 8 + ["text/plain", "application/x-evil+json"])
            headers = {"Content-Type": kind}
            reply = client.post(path, content=random_body(draw, path), headers=headers)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            if reply.status_code >= 400:
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        for name in ("..%2f..%2fetc%2fpasswd", "%00", "etc/passwd", "a" * 5000, "%ff", "?x=/etc"):
            for path in ("/v1/models/", "/page/", "/", "/metrics/"):
                assert client.get(f"{path}{name}").status_code in (200, 404), (path, name)
    assert set(statuses) <= {200, 400, 404}, statuses
    assert statuses[200] > 20 and statuses[400] > 100
    assert WATCH.events == []


def test_the_watch_sees_what_it_is_meant_to_see(client):
    before = len(WATCH.events)
    with WATCH.watching(), open(os.devnull):
        pass
    assert WATCH.events[before:][0][0] == "open"
    del WATCH.events[before:]


def schema_of(gate: Gate) -> Any:
    """The schema that an app publishes, whose requests go through its gate."""
    schemathesis = pytest.importorskip("schemathesis")
    gate.rules = replace(gate.rules, hosts={"localhost", "testserver"})
    return schemathesis.openapi.from_asgi("/openapi.json", gate)


def fuzz(schema: Any, mode: str, examples: int) -> int:
    """Check that no request of a mode meets a bug. Returns: how many were sent."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    sent = 0
    for result in schema.get_all_operations():

        @given(case=result.ok().as_strategy(generation_mode=GenerationMode(mode)))
        @settings(
            max_examples=examples,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        def check(case: Any) -> None:
            nonlocal sent
            sent += 1
            reply = case.call()
            assert reply.status_code < 500, case.as_curl_command()
            if reply.status_code >= 400:
                assert reply.json()["error"]["message"]

        with suppress(Unsatisfiable):  # a route without input cannot be asked wrongly
            check()
    return sent


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["negative", "positive"])
def test_no_5xx_under_schemathesis(mode):
    examples = at_length(150, 60)
    assert fuzz(schema_of(create_gate(WordEngine())), mode, examples) >= 2 * examples


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["negative", "positive"])
def test_no_5xx_of_the_operators_app(mode, tmp_path):
    write_adapter(tmp_path / "alice", 1.0)
    with Serving() as serving:
        examples = at_length(50, 25)
        gate = operators_gate(serving.store, tmp_path)
        assert fuzz(schema_of(gate), mode, examples) > 4 * examples


CHANGES = ("PUT", "PATCH", "DELETE")


def with_real_names(gate: Gate, names: list[str]) -> Gate:
    """The gate, whose schema allows only these names of adapters, and small generations: so that
    random sequences meet what earlier requests made."""
    schema = gate.app.openapi()  # type: ignore[attr-defined]
    for part in schema["components"]["schemas"].values():
        for field, value in part.get("properties", {}).items():
            if field in ("name", "folder", "lora_name", "lora_path"):
                part["properties"][field] = {"type": "string", "enum": names}
            elif field == "expected_generation":
                value["maximum"] = 3
            elif field == "conditions":
                value["maxItems"] = 0
    for path in schema["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "enum": names}
    return gate


@pytest.mark.slow
def test_no_5xx_in_sequences_of_the_operators_requests(tmp_path):
    """Load, replace, pin and unload in any order: all of them succeed now and then."""
    from hypothesis import HealthCheck, settings

    names = ["alice", "bob"]
    for number, name in enumerate(names):
        write_adapter(tmp_path / name, float(number))
    succeeded: set[tuple[str, str]] = set()
    latest = Latest()
    gate = with_real_names(operators_gate(latest, tmp_path), names)

    class Sequences(schema_of(gate).as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            latest.serving = Serving()

        def teardown(self) -> None:
            latest.serving.__exit__()

        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            assert response.status_code < 500, case.as_curl_command()
            if response.status_code < 300:
                succeeded.add((case.method, case.path))

    Sequences.run(
        settings=settings(
            max_examples=at_length(60, 30),
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
    )
    one = "/admin/adapters/{name}"
    assert succeeded >= {("POST", "/admin/adapters"), *((verb, one) for verb in CHANGES)}


class Latest:
    """A store that is another one in each sequence."""

    serving: Serving

    def __getattr__(self, name: str) -> Any:
        return getattr(self.serving.store, name)


def operators_gate(store: Any, root: Path) -> Gate:
    engine = WordEngine()
    return admin_gate(engine, store, Metrics(engine), Access.local("base"), root)
