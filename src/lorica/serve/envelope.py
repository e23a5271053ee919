"""Every error of the server as OpenAI's error object, so that its clients understand it.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.errors import ConfigError, DataError, LoricaError, ResourceError
from lorica.serve.refusals import InvalidRequest, ModelNotFound, Refusal

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Status -> type; other 4xx: invalid_request_error, 5xx: server_error."""
CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    431: "header_too_large",
    415: "unsupported_media_type",
    504: "deadline_exceeded",
}
SENTENCES = {
    "missing": "it is required",
    "extra_forbidden": "the field is unknown; leave it out",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "finite_number": "it must be a number that is finite",
    "bool_type": "it must be true or false",
    "string_type": "it must be a text",
    "list_type": "it must be a list",
    "dict_type": "it must be an object",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be more than {gt:,}",
    "greater_than_equal": "it must be at least {ge:,}",
    "less_than": "it must be less than {lt:,}",
    "less_than_equal": "it must be at most {le:,}",
    "string_too_short": "it must not be empty",
    "string_too_long": "it must have at most {max_length} characters",
    "too_short": "the list must not be empty",
    "too_long": "the list may have at most {max_length} entries, and has {actual_length}",
}
"""pydantic's kinds of mistakes in the words of the other messages."""
KINDS = {"str", "int", "constrained-str", "constrained-int"}
"""What pydantic calls the kinds of a field that may have several."""
MAX_MISTAKES = 8
"""Mistakes of a request body that a message lists."""


@dataclass(frozen=True)
class Failure:
    """An error as it is sent. headers: those beside the content's."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def log_notes(self, *, for_operator: bool = False) -> list[str]:
        """For the log: the code, and the message where the server refuses by itself or refuses the
        operator. Other messages could quote a prompt."""
        is_own = for_operator or self.status in (403, 503)
        return [self.code, f"{self.message!r:.500}"] if is_own else [self.code]

    def as_json(self) -> str:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": TYPES.get(self.status, kind),
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


BUG = Failure(500, "the server failed; its log has the reason.", "internal_error")


def failure_of_status(status: int, message: str) -> Failure:
    """A failure that has no exception of its own: of routing, or of a limit."""
    return Failure(status, message, CODES.get(status, "invalid_request"))


def failure_of(error: LoricaError, *, for_operator: bool = False) -> Failure | None:
    """An error as a failure for the client; None: it is the server's own affair.

    for_operator: tell everything; otherwise only refusals and mistakes in what the client sent,
    because other messages name files of the server.
    """
    if for_operator and type(error) is ModelNotFound:
        message = "no adapter has this name. Fix: GET /admin/adapters lists them."
        return Failure(error.status, message, error.code, "name")
    if isinstance(error, Refusal):
        return Failure(
            error.status, message_of(error), error.code, error.param, retry_headers(error)
        )
    if isinstance(error, ConfigError | DataError):
        return Failure(400, message_of(error), "invalid_request")
    if not for_operator:
        return None
    if isinstance(error, ResourceError):
        return Failure(507, message_of(error), "insufficient_storage")
    return Failure(400, message_of(error), "invalid_adapter")


def message_of(error: LoricaError) -> str:
    """What happened, the facts, and the fix in one line."""
    return f"{error.summary} Fix: {error.fix}." if error.fix else error.summary


def retry_headers(error: Refusal) -> tuple[tuple[str, str], ...]:
    """Retry-After in whole seconds, at least 1: a 429 or 503 says when to come back."""
    if error.retry_after is None:
        return ()
    return (("Retry-After", str(max(1, round(error.retry_after + 0.5)))),)


def failure_of_mistakes(mistakes: Sequence[Mapping[str, Any]]) -> Failure:
    """pydantic's list of mistakes in a request as one failure, each with its field."""
    reasons: dict[str, list[str]] = {}
    for mistake in mistakes:
        place = ".".join(str(part) for part in mistake["loc"][1:] if not _is_kind(part))
        reason = _sentence(mistake)
        if mistake["type"] == "json_invalid":
            place, reason = "", f"the body is not valid JSON: {reason}"
        elif mistake["loc"] == ("body",):
            reason = (
                "a JSON object is required, sent with the header Content-Type: application/json"
            )
        reasons.setdefault(place, []).append(reason.removeprefix("Value error, "))
    lines = {place: " or ".join(dict.fromkeys(several)) for place, several in reasons.items()}
    listed = [f"{place}: {reason}" if place else reason for place, reason in lines.items()]
    more = f" ... and {len(listed) - MAX_MISTAKES} more" if len(listed) > MAX_MISTAKES else ""
    param = next(iter(lines), "") or None
    return Failure(
        InvalidRequest.status,
        f"the request is not valid: {'; '.join(listed[:MAX_MISTAKES])}{more}.",
        InvalidRequest.code,
        param and param[:200],
    )


def _sentence(mistake: Mapping[str, Any]) -> str:
    """A mistake in words; pydantic's own for a kind without a sentence."""
    context, template = mistake.get("ctx", {}), SENTENCES.get(mistake["type"])
    if template is None:
        return str(context.get("error", mistake["msg"]))
    floats = {name: int(v) for name, v in context.items() if isinstance(v, float) and v % 1 == 0}
    return template.format(**context | floats)


def _is_kind(part: str | int) -> bool:
    """Whether a part of a place names a kind of value that was tried: str, list[str]."""
    return isinstance(part, str) and (part in KINDS or "[" in part)
