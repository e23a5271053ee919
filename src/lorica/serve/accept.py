"""From the body of a request to answers that the engine has accepted."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from starlette.responses import Response

from lorica.generation.sampling import MAX_SEED, Sampling
from lorica.serve.auth import Tenant
from lorica.serve.event_format import EventFormat
from lorica.serve.exchange import Answer, Engine, Job, ModelCard
from lorica.serve.generation_reply import GenerationReply
from lorica.serve.handover import Handover
from lorica.serve.metrics import Metrics
from lorica.serve.openai_api import LIMITS, ChatBody, CompletionBody, GenerationBody
from lorica.serve.refusals import InvalidRequest, ModelNotFound, Replaced
from lorica.serve.turns import ClientGone, Turns

COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens of a completion. A conversation may fill the room that is left."""

ATTEMPTS = 3
"""Times that a request is submitted while its model is being replaced."""


@dataclass(frozen=True, kw_only=True)
class Acceptor:
    """deadline: seconds that an answer may take, its wait in the queue included."""

    engine: Engine
    metrics: Metrics
    deadline: float
    turns: Turns = field(default_factory=Turns)

    async def accept(
        self,
        body: CompletionBody | ChatBody,
        tenant: Tenant,
        request_id: str,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> Response:
        """Tokenize and submit on a thread, when the tenant has a turn. is_gone: whether the client
        went away. Raises: Refusal."""
        since = time.perf_counter()
        handover = Handover()

        def accept() -> Response:
            return handover.give(self._accept(body, tenant, request_id, since))

        try:
            return await self.turns.run(tenant.name, is_gone, accept)
        except ClientGone:
            return Response(status_code=499)
        except asyncio.CancelledError:  # at shutdown: the thread goes on
            handover.abandon()
            raise

    def _accept(
        self, body: CompletionBody | ChatBody, tenant: Tenant, request_id: str, since: float
    ) -> GenerationReply:
        prompts, answers = self._submit_to_one(body, tenant)
        form = EventFormat(
            "chat" if isinstance(body, ChatBody) else "completion",
            request_id,
            answers[0].served,
            logprobs=_logprobs(body) is not None,
            include_usage=body.include_usage,
        )
        return GenerationReply(
            answers,
            form,
            [self.metrics.observe(answer.served, tenant.name, since) for answer in answers],
            stream=bool(body.stream),
            prompt_tokens=sum(map(len, prompts)),
        )

    def _submit_to_one(
        self, body: CompletionBody | ChatBody, tenant: Tenant
    ) -> tuple[list[tuple[int, ...]], Sequence[Answer]]:
        """Prompts and answers, written and given by one generation of the model.

        It may be replaced between the calls of the engine: then all is done again. Raises: Refusal.
        """
        for attempt in range(1, ATTEMPTS + 1):
            card = card_for(self.engine, body.model, tenant)
            room = card.max_length or self.engine.max_length
            prompts = self._prompts(body)
            jobs = self._jobs(body, tenant, prompts, room, card.generation)
            try:
                return prompts, self.engine.submit_all(list(jobs))
            except Replaced:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _prompts(self, body: CompletionBody | ChatBody) -> list[tuple[int, ...]]:
        """Token ids of each prompt of the request."""
        if isinstance(body, ChatBody):
            messages = [message.as_plain() for message in body.messages]
            return [self.engine.encode_chat(body.model, messages, body.chat_template)]
        prompts = body.prompts
        count = len(prompts) * body.choices
        if count > LIMITS.choices:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n={body.choices} are {count} answers; a request has "
                f"at most {LIMITS.choices}.",
                fix="send several requests",
                param="prompt",
            )
        return [
            self.engine.encode(body.model, prompt) if isinstance(prompt, str) else tuple(prompt)
            for prompt in prompts
        ]

    def _jobs(
        self,
        body: CompletionBody | ChatBody,
        tenant: Tenant,
        prompts: Sequence[tuple[int, ...]],
        room: int,
        generation: int,
    ) -> Iterator[Job]:
        """A job for each answer. The answers of a seed have the seeds that follow it."""
        seed = secrets.randbits(32) if body.seed is None else body.seed
        for prompt_index, prompt in enumerate(prompts):
            limit = _max_tokens(body, room - len(prompt))
            for choice in range(body.choices):
                number = prompt_index * body.choices + choice
                yield Job(
                    tenant=tenant.name,
                    model=body.model,
                    prompt=prompt,
                    chat=isinstance(body, ChatBody),
                    sampling=_sampling(body, limit, (seed + number) % (MAX_SEED + 1)),
                    stop=tuple(body.stop or ()),
                    logprobs=_logprobs(body),
                    generation=generation,
                    deadline=self.deadline,
                )


def card_for(engine: Engine, model: str, tenant: Tenant) -> ModelCard:
    """The card of a model. Raises: ModelNotFound; ConditionNotFound.

    What the tenant may not use is refused before it is looked up: neither the reply nor its time
    says whether it exists.
    """
    if not tenant.allows(model):
        raise ModelNotFound(model)
    return engine.card(model)


def _max_tokens(body: GenerationBody, room: int) -> int:
    """The limit of an answer. What exceeds the room is for the engine to refuse."""
    asked = body.max_tokens
    if isinstance(body, ChatBody):
        asked = body.max_completion_tokens or asked
        return asked or max(1, min(room, LIMITS.new_tokens))
    return asked or max(1, min(room, COMPLETION_TOKENS))


def _logprobs(body: CompletionBody | ChatBody) -> int | None:
    """Alternatives at each token; None: no log-probabilities are asked for."""
    if isinstance(body, ChatBody):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs


def _sampling(body: GenerationBody, max_new_tokens: int, seed: int) -> Sampling:
    more = {} if body.top_k is None else {"top_k": body.top_k}
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=seed,
        **more,
    )
