"""Why a request is refused: each is an HTTP status and a code that clients can act on.

A Refusal is written as OpenAI's error envelope by serve/http.py. Forbidden and unknown models give
the same `ModelNotFound`, word for word, so that nobody learns which models exist.
"""

from collections.abc import Sequence
from typing import ClassVar

from lorica.errors import LoricaError, listed


class Refusal(LoricaError):
    """status: of HTTP. code: a word for programs. retry_after: seconds; None: do not retry."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(
        self,
        what: str,
        *,
        fix: str | None = None,
        retry_after: float | None = None,
        param: str | None = None,
        **facts: object,
    ):
        super().__init__(what, fix=fix, **facts)
        self.retry_after, self.param = retry_after, param


class InvalidRequest(Refusal):
    """param: the field of the request that is wrong."""


class Unauthorized(Refusal):
    status, code = 401, "invalid_api_key"


class NotAnOperator(Refusal):
    """A tenant's key on a route of the operator."""

    status, code = 403, "not_an_operator"

    def __init__(self) -> None:
        super().__init__("this key is not an operator's.", fix="use one with admin: true")


class ModelNotFound(Refusal):
    status, code = 404, "model_not_found"

    def __init__(self, name: str):
        super().__init__(
            f"the model {name!r:.120} does not exist, or this key may not use it.",
            fix="GET /v1/models lists the models of this key",
            param="model",
        )


class ConditionNotFound(ModelNotFound):
    """For a key that may use the alias: names the conditions. known: (): it has none."""

    def __init__(self, alias: str, condition: str | None, known: Sequence[str]):
        what = f"the model {alias!r} does not know the condition {condition!r:.80}."
        fix = f"name one that it knows: {alias}:{known[0]}" if known else f"ask for {alias}"
        if condition is None:
            what = f"the model {alias!r} needs a condition, and none is named."
        elif not known:
            what = f"the model {alias!r} has no conditions, and {condition!r:.80} was asked for."
        Refusal.__init__(self, what, fix=fix, param="model", known=listed(known, 12))


class Conflict(Refusal):
    """A generation that is not the expected one, a pinned adapter, a name that is taken."""

    status, code = 409, "conflict"


class TooManyRequests(Refusal):
    """A quota is used up, or the queue is full."""

    status, code = 429, "rate_limit_exceeded"


class Unavailable(Refusal):
    """The server is starting, draining, or has failed."""

    status, code = 503, "unavailable"


class Replaced(Unavailable):
    """The model has another generation than the one that a prompt was written for."""

    def __init__(self, model: str):
        super().__init__(
            f"the model {model!r:.120} is being replaced.", fix="ask again", retry_after=1.0
        )
