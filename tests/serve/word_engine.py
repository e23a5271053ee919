"""An engine without a model: answers are drawn from words by model, prompt and seed.

Token ids of a prompt are the code points of its text. What a prompt says may set how it goes:
"fail" ends with an error after three tokens, "raise" raises in the iteration, "full" is refused
because the queue is full, "long" writes until max_tokens.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from lorica.serve.exchange import (
    End,
    EndReason,
    EngineStats,
    Job,
    ModelCard,
    Piece,
    Served,
    TokenLogprob,
)
from lorica.serve.prompts import check_job
from lorica.serve.refusals import (
    InvalidRequest,
    ModelNotFound,
    Replaced,
    TooManyRequests,
    Unavailable,
)

WORDS = ["red ", "green ", "blue\n", 'a "quoted" ', "日本", "né ", "🦜 ", "{}", "\\", "</script>"]
VOCABULARY = 2**20


class WordAnswer:
    def __init__(self, engine: "WordEngine", job: Job, served: Served):
        self.served, self._engine, self._job = served, engine, job
        self._forced: EndReason | None = None
        self._changed: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.end("cancelled")

    def end(self, reason: EndReason) -> None:
        self._forced = self._forced or reason
        if self._changed is None:  # nobody has begun to read it
            self._engine.forget(self)
            return
        loop, changed = self._changed
        if not loop.is_closed():
            loop.call_soon_threadsafe(changed.set)

    async def __aiter__(self) -> AsyncIterator[Piece | End]:
        self._changed = asyncio.get_running_loop(), asyncio.Event()
        written = 0
        engine, job = self._engine, self._job
        try:
            while engine.running >= engine.slots and not self._forced:
                await self._pause(0.005)
            engine.running += 1
            try:
                async for piece in self._pieces():
                    written += len(piece.tokens)
                    yield piece
            finally:
                engine.running -= 1
            reason = self._forced or self._reason
        finally:
            engine.forget(self)
        error = "the fake failed." if reason == "error" else None
        yield End(reason, len(job.prompt), written, error)

    async def _pieces(self) -> AsyncIterator[Piece]:
        job, engine = self._job, self._engine
        text = "".join(map(chr, job.prompt))
        seed = job.sampling.seed if job.sampling.temperature else 0
        draw = random.Random(f"{job.model} {text} {seed}")
        count = job.sampling.max_new_tokens
        self._reason: EndReason = "length"
        if "long" not in text and draw.randint(1, 40) < count:
            count, self._reason = draw.randint(1, 12), "stop"
        before = ""
        for number in range(count):
            if engine.seconds_per_token:
                await self._pause(engine.seconds_per_token)
            elif number % 50 == 0:
                await asyncio.sleep(0)
            if self._forced:
                return
            if number == 3 and "fail" in text:
                self._reason = "error"
                return
            if number == 3 and "raise" in text:
                raise RuntimeError(text)
            token = draw.randrange(len(WORDS))
            word = WORDS[token]
            for stop in job.stop:
                if stop in before + word:
                    word = (before + word).split(stop)[0][len(before) :]
                    self._reason = "stop"
            before += word
            yield Piece(word, (token,), self._logprobs(token))
            if self._reason == "stop" and job.stop:
                return

    def _logprobs(self, token: int) -> tuple[TokenLogprob, ...]:
        if self._job.logprobs is None:
            return ()
        top = tuple(
            (WORDS[(token + i) % 10], (token + i) % 10, -0.5 - i) for i in range(self._job.logprobs)
        )
        return (TokenLogprob(WORDS[token], token, -0.5, top),)

    async def _pause(self, seconds: float) -> None:
        assert self._changed
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed[1].wait(), seconds)


class WordEngine:
    """See serve/exchange.py `Engine`."""

    def __init__(self, *, slots: int = 8, max_length: int = 200, seconds_per_token: float = 0.0):
        self.base_name, self.max_length, self.slots = "org/base", max_length, slots
        self.is_ready, self.is_draining = True, False
        self.seconds_per_token, self.running = seconds_per_token, 0
        self.open: list[WordAnswer] = []
        self.cancelled = 0
        self.jobs: list[Job] = []
        self._lock = threading.Lock()
        common = {"generation": 0, "state": "resident", "max_length": max_length}
        self.models = {
            "org/base": ModelCard("org/base", None, "", **common),
            "alice": ModelCard(
                "alice",
                "org/base",
                "sha256:" + "a" * 64,
                generation=3,
                state="resident",
                resident_bytes=100,
                method="lora",
                max_length=max_length,
            ),
            "hyper": ModelCard(
                "hyper",
                "org/base",
                "sha256:" + "b" * 64,
                generation=1,
                state="evicted",
                method="hyperlora",
                conditions=("ve-ol",),
                pinned=True,
                max_length=max_length,
            ),
        }

    def cards(self) -> list[ModelCard]:
        return list(self.models.values())

    def stats(self) -> EngineStats:
        with self._lock:
            queued = len(self.open) - self.running
        return EngineStats(queued, self.running, self.slots, 100, 2, 1, (0.5, 0.1))

    def card(self, model: str) -> ModelCard:
        name, _, condition = model.partition(":")
        card = self.models.get(name)
        if card is None or (condition and condition not in card.conditions):
            raise ModelNotFound(model)
        return card

    def encode(self, model: str, prompt: str) -> tuple[int, ...]:
        return tuple(map(ord, prompt))

    def encode_chat(
        self, model: str, messages: list[dict[str, str]], template: str | None = None
    ) -> tuple[int, ...]:
        if template is not None:
            raise InvalidRequest("the chat template is another one.", param="chat_template")
        return self.encode(model, "".join(f"{m['role']}: {m['content']}\n" for m in messages))

    def submit_all(self, jobs: Sequence[Job]) -> list[WordAnswer]:
        answers: list[WordAnswer] = []
        try:
            for job in jobs:
                answers.append(self.submit(job))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers

    def submit(self, job: Job) -> WordAnswer:
        card = self.card(job.model)
        if job.generation not in (None, card.generation):
            raise Replaced(job.model)
        if self.is_draining:
            raise Unavailable("the server is stopping.", retry_after=5)
        check_job(job, self.max_length, VOCABULARY)
        text = "".join(map(chr, job.prompt))
        if "full" in text and len(self.open) >= 2:
            raise TooManyRequests("the queue is full.", retry_after=1.2)
        alias = None if card.parent is None else card.name
        answer = WordAnswer(self, job, Served(job.model, alias, card.digest, card.generation))
        with self._lock:
            self.open.append(answer)
            self.jobs.append(job)
        return answer

    def forget(self, answer: WordAnswer) -> None:
        with self._lock:
            if answer in self.open:
                self.open.remove(answer)
                self.cancelled += answer.is_cancelled

    def drain(self, timeout: float) -> int:
        self.is_draining = True
        until = time.monotonic() + timeout
        while self.open and time.monotonic() < until:
            time.sleep(0.01)
        with self._lock:
            rest = list(self.open)
        for answer in rest:
            answer.end("shutdown")
        while self.open:
            time.sleep(0.01)
        return len(rest)
