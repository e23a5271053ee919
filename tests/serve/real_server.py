"""`lorica serve` as a process of its own, and requests to it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.serve.shelf import TOKENIZER, Shelf
from tests.serve.traffic import Ask, expected


@dataclass(frozen=True)
class RealServer:
    """url, admin: addresses of its two apps."""

    process: subprocess.Popen
    base_name: str
    url: str
    admin: str

    @property
    def resident_mib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(base: Path, adapters: Path, log: Path, *options: str) -> Iterator[RealServer]:
    """A server of every adapter in a folder. It is killed at the end of the block if it runs.

    log: the file of its stderr. (A pipe that nobody reads would stop it when it is full.) It has
    one heap: else how much it holds depends on the number of processors.
    """
    command = [sys.executable, "-m", "lorica", "serve", str(base), "--adapters", str(adapters)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", "--admin_port", "0", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        lines = {}
        for line in process.stdout:
            name, *words = line.split()
            lines[name] = words[-1]
            if name == "admin":
                break
        assert "admin" in lines, log.read_text()
        yield RealServer(process, base.name, lines["page"].rstrip("/"), lines["admin"])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def accepted(figures: str) -> int:
    """How many answers a server has begun, from the text of /metrics: those that wait, run and have
    ended. A client cannot know: its request may still be on its way."""
    values = dict(line.rsplit(" ", 1) for line in figures.splitlines() if line[0] != "#")
    ended = [name for name in values if name.startswith("lorica_requests_total{")]
    counted = ("lorica_requests_waiting", "lorica_requests_running", *ended)
    return sum(int(float(values[name])) for name in counted)


def body_of(ask: Ask, shelf: Shelf, base_name: str, *, stream: bool) -> dict[str, Any]:
    """A request for a completion, with its tokens."""
    answers = next(v for (_, prompt), v in shelf.alone.items() if prompt == ask.prompt)
    sampling = answers[ask.take].sampling
    return {
        "model": ask.model or base_name,
        "prompt": list(shelf.prompts[ask.prompt]),
        "max_tokens": ask.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
        "seed": sampling.seed,
        "stop": list(ask.stop),
        "logprobs": 0,
        "stream": stream,
    }


@dataclass(frozen=True)
class Reply:
    """status: of HTTP. events: the objects of a stream, or the one of a whole reply.

    is_whole: it ended as it should; else the client hung up.
    """

    status: int
    events: Sequence[dict[str, Any]]
    is_whole: bool

    @property
    def error(self) -> dict[str, Any] | None:
        return next((event["error"] for event in self.events if "error" in event), None)

    @property
    def tokens(self) -> list[str]:
        parts = [c["logprobs"] for e in self.events for c in e["choices"] if c["logprobs"]]
        return [token for part in parts for token in part["tokens"]]

    @property
    def text(self) -> str:
        return "".join(choice["text"] for event in self.events for choice in event["choices"])

    @property
    def reason(self) -> str:
        return self.events[-1]["choices"][0]["finish_reason"]


async def complete(
    client: httpx2.AsyncClient, body: dict[str, Any], hang_up_after: int | None = None
) -> Reply:
    """hang_up_after: events of a stream; None: read it to its end."""
    events = []
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != 200 or not body["stream"]:
            return Reply(reply.status_code, [json.loads(await reply.aread())], True)
        async for event in _events(reply):
            if event is None:
                return Reply(200, events, True)
            events.append(event)
            if "error" in event:
                return Reply(200, events, True)
            if len(events) == hang_up_after:
                break
    return Reply(200, events, False)


async def _events(reply: Any) -> AsyncIterator[dict[str, Any] | None]:
    """The objects of a stream; None for its end."""
    async for line in reply.aiter_lines():
        if line:
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


def problem_of(ask: Ask, reply: Reply, shelf: Shelf) -> str | None:
    """What is wrong with a reply to which the client listened, compared with the solo answer."""
    if reply.error is not None:
        return f"{ask}: {reply.error}"
    served = reply.events[0]["lorica"]
    key = served["digest"], ask.condition
    if key not in shelf.keys(ask.alias, ask.condition):
        return f"{ask}: answered by {served}, which the alias never held"
    alone = shelf.alone[key, ask.prompt][ask.take]
    tokens, text, reason = expected(ask, alone)
    given = [t for n, t in enumerate(tokens) if _is_given(t, text, alone.texts and alone.texts[n])]
    words = [TOKENIZER.decode([t], clean_up_tokenization_spaces=False) for t in given]
    if not reply.is_whole:
        words, text = words[: len(reply.tokens)], None if text is None else text[: len(reply.text)]
    elif reply.reason != reason:
        return f"{ask}: ended by {reply.reason}, and alone by {reason}"
    if reply.tokens != words:
        return f"{ask}: {reply.tokens}, and alone {words}; {served}"
    if text is not None and reply.text != text:
        return f"{ask}: {reply.text!r}, and alone {text!r}; {served}"
    return None


def _is_given(token: int, text: str | None, upto: str | None) -> bool:
    """Whether a token is named in the reply: neither a stop token, nor cut off by a stop string.

    text: of the reply. upto: of the answer alone, with this token.
    """
    is_cut = text is not None and upto is not None and len(upto) > len(text)
    return token != TOKENIZER.eos_token_id and not is_cut


async def complete_when_there(
    client: httpx2.AsyncClient, body: dict[str, Any], hang_up_after: int | None
) -> tuple[Reply, int]:
    """As `complete`, again while the model is not there just now. Also: how often it was not."""
    for refused in range(2000):
        reply = await complete(client, body, hang_up_after)
        if reply.status not in (404, 503):
            return reply, refused
        await asyncio.sleep(0.02)
    raise AssertionError(f"{body['model']} does not come back")
