"""What HTTP and the engine pass to one another: a request, and its answer piece by piece."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lorica.generation.sampling import Sampling
from lorica.serve.refusals import Refusal

EndReason = Literal["stop", "length", "cancelled", "deadline", "shutdown", "error"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One answer that a tenant asks for; a request with n > 1 is n jobs.

    tenant: who is charged. model: the name of a served model: the base, an alias, or
    "alias:condition". prompt: token ids, of `encode`, or of `encode_chat` if chat. stop: strings
    that end the answer, besides those of the model. logprobs: how many alternatives to give at
    each token; None: no log-probabilities. generation: of the model that the prompt was written
    for; None: any.
    deadline: seconds from now until it ends; None: no limit.
    """

    tenant: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling
    chat: bool = False
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    generation: int | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """text, token: what was chosen. logprob: of the model's own distribution, in nats, before
    temperature. top: (text, token, logprob) of the most probable tokens, best first."""

    text: str
    token: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that no later token can change, and the tokens since the last piece.

    logprobs: of the tokens whose whole text is in this piece and those before it.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class End:
    """The last event of an answer. error: a sentence for the client if reason is "error".

    refusal: what the client can act on, if the error is one; else it is the server's own.
    """

    reason: EndReason
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Served:
    """The model that answers: fixed when the job is accepted, whatever is loaded later.

    alias: None for the base. digest: of the adapter's content; "" for the base.
    """

    model: str
    alias: str | None
    digest: str
    generation: int


class Answer(Protocol):
    """An answer that is being written. Iterate over it once: pieces, then one End."""

    served: Served

    def __aiter__(self) -> AsyncIterator[Piece | End]: ...

    def cancel(self) -> None:
        """Free its slot at the next step. Allowed at any time, from any thread."""


@dataclass(frozen=True)
class ModelCard:
    """A served model as /v1/models and the page list it.

    parent: the base's name; None for the base. method: of the adapter. state: of the store.
    conditions: for a conditioned adapter, those that may be asked for. notes: for a person: what
    it was trained on and how it scored, from its folder. warnings: for the operator alone, as they
    name paths: what could not be verified, and why the last load failed. chat: its prompts can be
    conversations.
    """

    name: str
    parent: str | None
    digest: str
    generation: int
    state: str
    pinned: bool = False
    resident_bytes: int = 0
    method: str | None = None
    conditions: tuple[str, ...] = ()
    notes: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()
    chat: bool = True
    max_length: int | None = None
    loaded_at: float = 0.0


@dataclass(frozen=True)
class EngineStats:
    """What happens now. queued, running: answers. loads, evictions: since the start.

    load_seconds: of the latest loads, at most 100, oldest first.
    """

    queued: int
    running: int
    slots: int
    resident_bytes: int
    loads: int
    evictions: int
    load_seconds: tuple[float, ...]


class Engine(Protocol):
    """What HTTP asks of the engine. All methods are quick, and safe in any thread."""

    base_name: str
    max_length: int
    is_ready: bool
    is_draining: bool

    def cards(self) -> list[ModelCard]: ...

    def stats(self) -> EngineStats: ...

    def card(self, model: str) -> ModelCard:
        """Raises: ModelNotFound. `model` may be "alias:condition"."""
        ...

    def encode(self, model: str, prompt: str) -> tuple[int, ...]:
        """Token ids of a plain prompt for `model`."""
        ...

    def encode_chat(
        self, model: str, messages: list[dict[str, str]], template: str | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation, in the format that the adapter was trained with.

        template: one that the client wants; refused (InvalidRequest) unless it is the same.
        """
        ...

    def submit_all(self, jobs: Sequence[Job]) -> Sequence[Answer]:
        """Accept the jobs of one request, which have one tenant and one model: all of them or none.

        Raises: Refusal (unknown model, queue full, quota, draining, too long), and has charged
            nothing then; Replaced if the model has another generation than a job's.
        """
        ...

    def drain(self, timeout: float) -> int:
        """Accept nothing more, finish what runs, and end the rest with reason "shutdown".

        Blocks until then. Returns: how many answers were ended that way.
        """
        ...
