"""Limits on what one request may ask for, so that its time and memory are bounded."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds of the fields of a request. What exceeds one is refused, never cut.

    body: bytes of a request. depth: levels of nested JSON. choices: answers of
    one request (`n`; OpenAI allows 128, and each takes a slot). new_tokens: of one answer; the
    room that prompt and model leave is a limit too. stops: stop strings
    (OpenAI's 4); stop_length: characters of one. prompt_ids: of one prompt. logprobs: alternatives
    per token (OpenAI's 20).
    """

    body: int = 2**20
    depth: int = 16
    choices: int = 8
    prompt_ids: int = 2**18
    new_tokens: int = 4096
    stops: int = 4
    stop_length: int = 128
    logprobs: int = 20
