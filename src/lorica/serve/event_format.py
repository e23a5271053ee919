"""Answers as OpenAI's JSON: chunks of a stream, and whole bodies.

A token's chunk is a prepared prefix, the text as a JSON string and a suffix: no model of pydantic
and no dict is built for it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from json import dumps
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Literal

from lorica.serve.exchange import End, Piece, Served, TokenLogprob

Kind = Literal["chat", "completion"]
LOWEST_LOGPROB = -9999.0
"""Written for a probability of 0, because JSON has no infinity."""
DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer as far as it is written. offset: characters of its text, for `text_offset`."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0
    end: End | None = None


class EventFormat:
    """The JSON of one request's answers. served: of its first answer."""

    def __init__(
        self, kind: Kind, request_id: str, served: Served, *, logprobs: bool, include_usage: bool
    ):
        self.kind: Kind = kind
        self.has_logprobs, self.include_usage = logprobs, include_usage
        self.head = {
            "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{request_id}",
            "object": "chat.completion" if kind == "chat" else "text_completion",
            "created": int(time.time()),
            "model": served.model,
            "system_fingerprint": fingerprint(served),
        }
        self.served = served
        usage = {"usage": None} if include_usage else {}
        opening = {**self.head, "object": self._chunk_object, **usage}
        self._opening = f"data: {dumps(opening)[:-1]}, "
        self._text_key = '"delta": {"content": ' if kind == "chat" else '"text": '
        self._close = "}" if kind == "chat" else ""

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def first(self, choices: int) -> bytes:
        """Chunks before any text: who answers, and the role in a conversation."""
        lorica = f'"lorica": {dumps(asdict(self.served))}, '
        chat = self.kind == "chat"
        what = '"delta": {"role": "assistant", "content": ""}' if chat else '"text": ""'
        rest = '"logprobs": null, "finish_reason": null}]}\n\n'
        return "".join(
            f'{self._opening}{lorica}"choices": [{{"index": {index}, {what}, {rest}'
            for index in range(choices)
        ).encode()

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """A chunk with text; b"" if there is nothing to tell yet."""
        if not piece.text and not (self.has_logprobs and piece.logprobs):
            return b""
        logprobs = "null"
        if self.has_logprobs and piece.logprobs:
            logprobs = dumps(self.logprobs(piece.logprobs, choice.offset))
            choice.offset += sum(len(item.text) for item in piece.logprobs)
        return (
            f'{self._opening}"choices": [{{"index": {choice.index}, {self._text_key}'
            f'{quote(piece.text)}{self._close}, "logprobs": {logprobs}, "finish_reason": null}}]}}'
            "\n\n"
        ).encode()

    def finish(self, choice: Choice) -> bytes:
        """The chunk that says why an answer ended."""
        assert choice.end is not None
        what = '"delta": {}' if self.kind == "chat" else '"text": ""'
        return (
            f'{self._opening}"choices": [{{"index": {choice.index}, {what}, "logprobs": null, '
            f'"finish_reason": "{choice.end.reason}"}}]}}\n\n'
        ).encode()

    def usage(self, usage: dict[str, int]) -> bytes:
        """The chunk before [DONE] that `stream_options.include_usage` asks for."""
        chunk = {**self.head, "object": self._chunk_object, "choices": [], "usage": usage}
        return f"data: {dumps(chunk)}\n\n".encode()

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The body of a request that is not streamed."""
        return {
            **self.head,
            "lorica": asdict(self.served),
            "choices": [self._whole_choice(choice) for choice in choices],
            "usage": usage,
        }

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        text = "".join(choice.texts)
        what: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            what = {"message": {"role": "assistant", "content": text, "refusal": None}}
        logprobs = self.logprobs(choice.logprobs, 0) if self.has_logprobs else None
        return {
            "index": choice.index,
            **what,
            "logprobs": logprobs,
            "finish_reason": choice.end.reason,
        }

    def logprobs(self, items: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """The tokens' log-probabilities in the form of the route. offset: of the first token."""
        if self.kind == "chat":
            return {"content": [_chat_logprob(item) for item in items], "refusal": None}
        offsets = []
        for item in items:
            offsets.append(offset)
            offset += len(item.text)
        return {
            "tokens": [item.text for item in items],
            "token_logprobs": [_finite(item.logprob) for item in items],
            "top_logprobs": [_by_text(item) for item in items],
            "text_offset": offsets,
        }


def fingerprint(served: Served) -> str:
    """`system_fingerprint`: equal fingerprints mean the same weights."""
    if not served.digest:
        return "base"
    return f"{served.digest.removeprefix('sha256:')[:16]}-g{served.generation}"


def usage_of(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, int]:
    """prompt_tokens: of each prompt once, however many answers it has."""
    completion = sum(choice.end.completion_tokens for choice in choices if choice.end)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
    }


def _chat_logprob(item: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for text, _, logprob in item.top]
    return {**_token(item.text, item.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {
        "token": text,
        "bytes": list(text.encode(errors="replace")),
        "logprob": _finite(logprob),
    }


def _by_text(item: TokenLogprob) -> dict[str, float]:
    """Alternatives by their text; of tokens with the same text the most probable."""
    top: dict[str, float] = {}
    for text, _, logprob in item.top:
        top.setdefault(text, _finite(logprob))
    return top


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
