"""A small server with OpenAI's API for the page: answers, errors and delays as a test wants them.

`python -m tests.serve.page_server --scene many` serves the page by hand, with one of the scenes.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lorica.serve import page


@dataclass
class Refusal:
    status: int
    error: dict
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Scene:
    """cards: of /v1/models. answers: text by model, written word by word with `delay` seconds
    between them. refusals: by model. broken: models whose stream ends with an error event.
    key: what clients must send. hold_after: words after which every answer waits until `release`
    is set. requests: what arrived. aborted: models whose client went away."""

    cards: list[dict]
    answers: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    key: str | None = None
    delay: float = 0.0
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)


def card(name: str, parent: str | None = "base", **fields: object) -> dict:
    """A model as /v1/models lists it."""
    digest = "" if parent is None else (name.encode().hex() * 64)[:64]
    return {
        "id": name,
        "object": "model",
        "created": 1_790_000_000,
        "owned_by": "lorica",
        "parent": parent,
        "digest": digest and f"sha256:{digest}",
        "generation": 0 if parent is None else 1,
        "state": "resident",
        "pinned": False,
        "resident_bytes": 0 if parent is None else 1_310_720,
        "method": None if parent is None else "lora",
        "conditions": [],
        "notes": None,
        "chat": True,
        "max_length": 2048,
        **fields,
    }


class Handler(BaseHTTPRequestHandler):
    scene: Scene
    files = page.read_files()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path in self.files:
            file = self.files[self.path]
            self.reply(200, file.content, {"Content-Type": file.media_type, **page.HEADERS})
        elif self.path == "/v1/models" and self.is_allowed():
            self.reply_json(200, {"object": "list", "data": self.scene.cards})
        elif self.path != "/v1/models":
            self.reply_json(404, {"error": {"message": f"no route {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return
        self.scene.requests.append((self.path, body))
        refusal = self.scene.refusals.get(body["model"])
        if refusal is not None:
            self.reply_json(refusal.status, {"error": refusal.error}, refusal.headers)
            return
        try:
            self.stream(body["model"], is_chat="messages" in body)
        except OSError:
            self.scene.aborted.append(body["model"])

    def is_allowed(self) -> bool:
        if self.scene.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        message = "this API key is not one of the server's."
        self.reply_json(401, {"error": {"message": message, "code": "invalid_api_key"}})
        return False

    def stream(self, model: str, *, is_chat: bool) -> None:
        scene = self.scene
        self.begin(200, {"Content-Type": "text/event-stream"})
        words = scene.answers.get(model, f"This is {model}.").split(" ")
        alias = model.partition(":")[0]
        known = next(c for c in scene.cards if c["id"] == alias)
        who = {"digest": known["digest"], "generation": known["generation"]}
        shared = {"model": model, "lorica": {"model": model, "alias": alias, **who}}
        for index, word in enumerate(words):
            if index == scene.hold_after:
                self.wait()
            text = word if index == 0 else f" {word}"
            content = {"delta": {"content": text}} if is_chat else {"text": text}
            self.event({**shared, "choices": [{"index": 0, "finish_reason": None, **content}]})
            time.sleep(scene.delay)
        if model in scene.broken:
            self.event({"error": {"message": "the server shuts down.", "code": "unavailable"}})
            return
        empty = {"delta": {}} if is_chat else {"text": ""}
        self.event({**shared, "choices": [{"index": 0, "finish_reason": "stop", **empty}]})
        usage = {"prompt_tokens": 12, "completion_tokens": len(words), "total_tokens": 0}
        self.event({**shared, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def wait(self) -> None:
        """Until the test releases the answer; comments notice when the client goes away."""
        while not self.scene.release.wait(0.02):
            self.wfile.write(b": wait\n\n")

    def event(self, data: dict) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.begin(status, {"Content-Length": str(len(content)), **headers})
        self.wfile.write(content)

    def reply_json(self, status: int, value: dict, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json", **(headers or {})}
        self.reply(status, json.dumps(value).encode(), kind)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away: that is what the tests are about."""


@contextmanager
def serving(scene: Scene, port: int = 0) -> Iterator[str]:
    """Serve the page and `scene`. Gives: the address."""
    handler = type("SceneHandler", (Handler,), {"scene": scene})
    with Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            scene.release.set()
            server.shutdown()
            thread.join()


NOTES = {
    "trained_on": "tickets, 3,000 rows, 2 epochs",
    "exact match": "0.93 (95 % interval 0.89 to 0.96), base 0.04",
    "perplexity": "1.21, base 6.48",
}
LONG = (
    "The order arrived on Tuesday with one of its three parts missing, and the customer asks for "
    "the missing part or for the price of it. The invoice names all three parts.\n\n"
    "priority: high\nqueue: shipping\n\n"
)


def scenes() -> dict[str, Scene]:
    """By name: what the page is looked at with."""
    few = [
        card("tiny-base", None),
        card("tickets", notes=NOTES),
        card("tone", method="dora", notes=NOTES, chat=False),
        card("hyper", method="hyperlora", conditions=["ve-ol", "ol-ve"]),
    ]
    answers = {
        "tiny-base": "The order is late, and the customer wants to know why it is late.",
        "tickets": "priority: high\nqueue: shipping\nThe order is late; the customer wants it now.",
        "tone": LONG * 8,
    }
    many = [few[0]]
    many += [card(f"customer-{i:02}", method=("lora", "dora", "ia3")[i % 3]) for i in range(60)]
    quota = "the quota of 600 tokens per minute is used up. Fix: wait, or ask for fewer tokens."
    limited = Refusal(429, {"message": quota}, {"Retry-After": "7"})
    return {
        "few": Scene(few, answers, delay=0.05),
        "many": Scene(many, answers, delay=0.05),
        "errors": Scene(few, answers, {"tickets": limited}, {"tone"}, delay=0.01),
        "key": Scene(few, answers, key="secret", delay=0.05),
        "none": Scene([]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", default="few", choices=scenes())
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with serving(scenes()[arguments.scene], arguments.port) as address:
        print(address)
        threading.Event().wait()


if __name__ == "__main__":
    main()
