"""What a server may answer: each is an error with its cause, and none has the key."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lorica.errors import ConfigError, LoricaError
from lorica.formats.golden import Golden, GoldenRow
from lorica.handover.endpoint import Endpoint
from lorica.handover.replay import Answer, Opening, Verdict, replay
from lorica.handover.served_model import served_model

KEY = "sk-secret"
MODELS = {"data": [{"id": "run", "parent": "base"}, {"id": "base"}]}


class Handler(BaseHTTPRequestHandler):
    """Gives `server.answers` by path: (status, body, headers)."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        status, body, headers = self.server.answers.get(self.path, (404, b"{}", {}))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.answers, running.requests = {}, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url_of(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "gave no JSON"),
        (200, b"[" * 100_000, "nested deeper"),
        (200, b"[1]", "lists no models"),
        (200, b'{"data": 3}', "lists no models"),
        (200, b" " * (2**24 + 1), "more than 16,777,216 bytes"),
        (401, b"bad key: Bearer sk-secret\x1b[2J", "status 401"),
        (302, b"", "redirects to"),
    ],
)
def test_a_list_of_models_that_is_none(status: int, body: bytes, words: str, server: Any):
    headers = {"Location": f"{url_of(server)}/elsewhere"} if status == 302 else {}
    server.answers["/v1/models"] = (status, body, headers)
    with pytest.raises(LoricaError, match=words) as error:
        Endpoint(url_of(server), KEY).models()
    assert KEY not in str(error.value) and "\x1b" not in str(error.value)
    assert [path for path, _ in server.requests] == ["/v1/models"]  # the key went nowhere else


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "http://", "http://h:port", "http://a b", "http://u:secret@h", "http://["],
)
def test_what_is_no_url(url: str):
    with pytest.raises(ConfigError, match="is no URL of a server") as error:
        Endpoint(url)
    assert "secret" not in str(error.value)


def test_a_key_that_no_header_can_have():
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as error:
        Endpoint("http://127.0.0.1:1", f"{KEY}\n")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"choices": []}, "0 choices"),
        ({"choices": [{}, {}]}, "2 choices"),
        ({"choices": [{"text": "x"}]}, "no log-probabilities"),
        ({"choices": [{"logprobs": {"token_logprobs": [None]}}]}, "are no numbers: None"),
        ({"choices": [{"logprobs": {"token_logprobs": ["-1"]}}]}, "are no numbers: '-1'"),
        ({"choices": [{"logprobs": {"content": [{}]}}]}, "are no numbers: None"),
        ([], "gave no JSON object"),
    ],
)
def test_an_answer_that_cannot_be_compared(reply: Any, words: str, server: Any):
    server.answers["/v1/models"] = (200, json.dumps(MODELS).encode(), {})
    server.answers["/v1/completions"] = (200, json.dumps(reply).encode(), {})
    served = served_model(Endpoint(url_of(server)), "run", "base")
    with pytest.raises(LoricaError, match=words):
        served.logprob_after([1, 2], adapted=True)


def test_the_adapters_of_llama_cpp_are_known_by_their_folders(server: Any):
    files = [{"id": 0, "path": "/x/alice/adapter.gguf"}, {"id": 1, "path": "/x/bob/adapter.gguf"}]
    server.answers["/v1/models"] = (200, json.dumps(MODELS).encode(), {})
    server.answers["/lora-adapters"] = (200, json.dumps(files).encode(), {})
    endpoint = Endpoint(url_of(server))
    assert served_model(endpoint, "bob", "base").own == 1
    with pytest.raises(LoricaError, match="2 adapters, and 0 of them in a folder carol"):
        served_model(endpoint, "carol", "base")


class Fixed:
    """A model that gives one log-probability everywhere, and stops or never does."""

    def __init__(self, logprob: float, *, stops: bool = True):
        self.logprob, self.stops = logprob, stops

    def logprob_after(self, ids: Any, *, adapted: bool) -> float:
        return self.logprob if adapted else -2.0

    def answer(self, ids: Any, max_tokens: int) -> Answer:
        return Answer("", self.stops)

    def opening(self, row: GoldenRow) -> Opening | None:
        return Opening(row.prompt, None)


def ending_at_once(logprob: float) -> GoldenRow:
    return GoldenRow(
        (1, 5, 2), (-1.0, logprob), prompt=2, base_logprobs=(-2.0,), ended="stop", text=""
    )


def verdict(model: Fixed, *rows: GoldenRow) -> Verdict:
    return replay(Golden(rows), model, "run")


def test_answers_that_end_at_once_are_compared_by_their_stops():
    surely, barely = ending_at_once(-0.01), ending_at_once(-0.9)
    assert verdict(Fixed(-1.0), surely).problems == []
    (problem,) = verdict(Fixed(-1.0, stops=False), surely).problems
    assert "1 answer did not end at the stop token" in problem
    near_tie = verdict(Fixed(-1.0, stops=False), barely)
    assert near_tie.problems == [] and any("nearly as probable" in n for n in near_tie.notices)
    assert verdict(Fixed(-1.0, stops=False), barely, barely).problems  # a tie is no habit


def test_a_difference_without_a_number_is_null_in_json():
    row = GoldenRow((1, 5, 6), (-1.0, -0.1), prompt=2, base_logprobs=(-2.0,), ended="length")
    ended = verdict(Fixed(float("nan")), row)
    assert "answers end where recorded ones go on" in ended.problems[0] and ended.places == 0
    assert ended.as_dict()["worst"] is None
