"""The answers of one request on their way to the client: streamed, or collected.

A client that goes away cancels them at once, also while they wait for a slot.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import quote

from starlette.responses import JSONResponse, Response

from lorica.serve.envelope import BUG, Failure, failure_of
from lorica.serve.event_format import DONE, Choice, EventFormat, usage_of
from lorica.serve.exchange import Answer, End, Piece, Served
from lorica.serve.log import write_bug

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ENDINGS = {
    "cancelled": Failure(499, "the answer was cancelled.", "cancelled"),
    "deadline": Failure(504, "the answer took longer than the server allows.", "deadline_exceeded"),
    "shutdown": Failure(
        503,
        "the server stopped before the answer was complete.",
        "unavailable",
        headers=(("Retry-After", "5"),),
    ),
    "error": Failure(500, "the server failed while it wrote the answer.", "internal_error"),
}
"""Reasons of an end that leave an answer incomplete."""


class Observer(Protocol):
    """Measures one answer: for the metrics."""

    def on_piece(self, tokens: int) -> None: ...
    def on_end(self, end: End) -> None: ...


class GenerationReply(Response):
    """An ASGI response that writes answers.

    answers, observers: one for each choice. prompt_tokens: of all prompts of the request.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        form: EventFormat,
        observers: Sequence[Observer],
        *,
        stream: bool,
        prompt_tokens: int,
    ):
        super().__init__()
        self.answers, self.form, self.observers = answers, form, observers
        self.stream, self.prompt_tokens = stream, prompt_tokens
        self.choices = [Choice(index) for index in range(len(answers))]
        self.has_failed = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            async with _watching(receive, self.cancel):
                await (self._send_stream(send) if self.stream else self._send_whole(scope, send))
        finally:
            self.cancel()
            scope["log_notes"] = self._notes()

    def cancel(self) -> None:
        """End what still runs: the client is gone, or sending failed."""
        for answer, choice in zip(self.answers, self.choices, strict=True):
            if choice.end is None:
                answer.cancel()

    async def _send_whole(self, scope: Any, send: Send) -> None:
        async for choice, event in self._events():
            if isinstance(event, Piece):
                choice.texts.append(event.text)
                choice.logprobs += event.logprobs
        headers = served_headers(self.form.served)
        failure = self._failure()
        if failure is None:
            body = self.form.whole(self.choices, usage_of(self.prompt_tokens, self.choices))
            response = JSONResponse(body, headers=headers)
        else:
            headers |= dict(failure.headers)
            response = Response(failure.as_json(), failure.status, headers, "application/json")
        await response(scope, _nothing, send)

    async def _send_stream(self, send: Send) -> None:
        form = self.form
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            **served_headers(form.served),
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send(_part(form.first(len(self.choices))))
        async for choice, event in self._events():
            if isinstance(event, Piece):
                chunk = form.piece(choice, event)
            else:
                chunk = form.finish(choice) if event.reason not in ENDINGS else b""
            if chunk:
                await send(_part(chunk))
        failure = self._failure()
        if failure is not None:  # no [DONE]: it means that the answer is complete
            last = f"data: {failure.as_json()}\n\n".encode()
        else:
            usage = usage_of(self.prompt_tokens, self.choices)
            last = (form.usage(usage) if form.include_usage else b"") + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _events(self) -> AsyncIterator[tuple[Choice, Piece | End]]:
        """The events of all answers as they come, noted in their choice and measured. They end
        early if an answer raises."""
        events = _merge(self.answers)
        while True:
            try:
                index, event = await anext(events)
            except StopAsyncIteration:
                return
            except Exception as error:
                write_bug(self.form.head["id"], error)
                self.has_failed = True
                return
            choice = self.choices[index]
            if isinstance(event, Piece):
                self.observers[index].on_piece(len(event.tokens))
            else:
                choice.end = event
                self.observers[index].on_end(event)
            yield choice, event

    def _failure(self) -> Failure | None:
        """Why the request is incomplete; None: every answer ended by itself."""
        if self.has_failed:
            return BUG
        for choice in self.choices:
            assert choice.end is not None
            if choice.end.refusal is not None:
                return failure_of(choice.end.refusal)
            failure = ENDINGS.get(choice.end.reason)
            if failure is not None:
                message = choice.end.error or failure.message
                return Failure(failure.status, message, failure.code, None, failure.headers)
        return None

    def _notes(self) -> list[str]:
        """For the log: the model, tokens in and out, and why the answers ended."""
        ends = [choice.end for choice in self.choices if choice.end]
        tokens = sum(end.completion_tokens for end in ends)
        served = self.form.served
        reasons = dict.fromkeys(end.reason for end in ends)
        errors = dict.fromkeys(f"{end.error!r:.200}" for end in ends if end.error)
        missing = "internal_error" if self.has_failed else "gone"
        return [
            f"model={served.model!r:.100}",
            f"generation={served.generation}",
            f"tokens={self.prompt_tokens}+{tokens}",
            ",".join(reasons) or missing,
            *errors,
        ]


def served_headers(served: Served) -> dict[str, str]:
    """Which adapter answers, for a proxy's log: its alias, its digest and its generation."""
    return {
        "x-lorica-adapter": quote(served.alias or "", safe=":"),
        "x-lorica-digest": quote(served.digest, safe=":"),
        "x-lorica-generation": str(served.generation),
    }


async def _merge(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Piece | End]]:
    """(index of the answer, event) of all answers, each in its order."""
    if len(answers) == 1:
        async for event in answers[0]:
            yield 0, event
        return
    events: asyncio.Queue[tuple[int, Piece | End | BaseException]] = asyncio.Queue()

    async def pump(index: int, answer: Answer) -> None:
        try:
            async for event in answer:
                events.put_nowait((index, event))
        except Exception as error:
            events.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(i, answer)) for i, answer in enumerate(answers)]
    running = len(pumps)
    try:
        while running:
            index, event = await events.get()
            if isinstance(event, BaseException):
                raise event
            running -= isinstance(event, End)
            yield index, event
    finally:
        for task in pumps:
            task.cancel()


@asynccontextmanager
async def _watching(receive: Receive, on_gone: Callable[[], None]) -> AsyncIterator[None]:
    """Inside the block, call `on_gone` when the client closes its connection."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_gone()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def _nothing() -> Any:
    """A `receive` for a response that receives nothing."""
    return {"type": "http.disconnect"}


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
