"""A body of the largest size costs a bounded amount of work, whatever is in it."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from lorica.serve.admin import NewAdapter, Replacement, create_admin_app
from lorica.serve.http import create_app
from lorica.serve.limits import Limits
from lorica.serve.metrics import Metrics
from lorica.serve.openai_api import ChatBody, CompletionBody
from lorica.serve.request_limits import MAX_HEADER_BYTES
from tests.serve.live_server import create_gate, running
from tests.serve.word_engine import WordEngine

MANY = 300_000
ITEMS = {
    "negative": -1,
    "number": 1,
    "text": "",
    "list": [],
    "object": {},
    "ids": [-1],
    "null": None,
}
USER = {"role": "user"}
BODIES = [
    (CompletionBody, lambda items: {"prompt": items}),
    (CompletionBody, lambda items: {"prompt": [items]}),
    (CompletionBody, lambda items: {"prompt": "x", "stop": items}),
    (ChatBody, lambda items: {"messages": items}),
    (ChatBody, lambda items: {"messages": [USER | {"content": items}]}),
    (NewAdapter, lambda items: {"name": "a", "conditions": items}),
    (Replacement, lambda items: {"expected_generation": 0, "conditions": items}),
]


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize(("body", "around"), BODIES)
def test_a_list_of_mistakes_counts_as_one(body: type[BaseModel], around: Any, item: object):
    model = {} if body in (NewAdapter, Replacement) else {"model": "alice"}
    with pytest.raises(ValidationError) as refusal:
        body.model_validate(model | around([item] * MANY))
    assert refusal.value.error_count() <= 4


def test_every_list_of_every_body_has_a_limit(tmp_path: Path):
    engine = WordEngine()
    client = create_app(engine, Metrics(engine), deadline=1.0)
    admin = create_admin_app(engine, None, Metrics(engine), tmp_path)  # type: ignore[arg-type]
    for app in (client, admin):
        lists = [node for node in nodes_of(app.openapi()) if node.get("type") == "array"]
        own = [node for node in lists if node.get("title") not in ("Location", "Detail")]
        assert own and all(node["maxItems"] <= 2**18 for node in own)


def nodes_of(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [node for item in value for node in nodes_of(item)]
    if not isinstance(value, dict):
        return []
    return [value, *(node for item in value.values() for node in nodes_of(item))]


def test_a_refusal_of_a_large_body_is_short():
    with TestClient(create_gate(WordEngine()), base_url="http://localhost") as client:
        body = {"model": "alice", "prompt": [-1] * MANY}
        content = json.dumps(body, separators=(",", ":"))
        assert len(content) < Limits().body
        reply = client.post("/v1/completions", content=content, headers=JSON)
    assert reply.status_code == 400 and len(reply.text) < 300
    assert reply.json()["error"]["param"] == "prompt.0"


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("PUT", 405), ("GET", 413)])
@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_no_body_is_read_without_a_key(method: str, status: int, length: str):
    """The reply comes before the body, and ends the connection."""
    with running(WordEngine(), create_gate(WordEngine(), keys=True)) as live:
        for path in ("/health/live", "/", "/health/ready"):
            reply = ask(live, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n")
            assert reply.startswith(f"HTTP/1.1 {status} ") and "connection: close" in reply
            assert '"error"' in reply


def test_a_large_header_is_refused_in_one_segment_too():
    with running(WordEngine()) as live:
        header = f"Host: localhost\r\nX: {'a' * MAX_HEADER_BYTES}\r\n"
        assert ask(live, f"GET /health/live HTTP/1.1\r\n{header}\r\n").startswith("HTTP/1.1 4")


def ask(live: Any, request: str) -> str:
    """All that comes back, until the server closes."""
    with socket.create_connection((live.host, live.port), timeout=20) as connection:
        connection.sendall(request.encode())
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces).decode()
