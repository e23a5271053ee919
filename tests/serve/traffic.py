"""Requests to an engine while adapters come and go, and whether each answer is its solo answer."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorica.serve.engine import ServingEngine
from lorica.serve.exchange import End, Job, Piece, Served
from lorica.serve.refusals import ModelNotFound, Unavailable
from tests.serve.shelf import TOKENIZER, Alone, Key, Shelf

PATIENCE = 60.0
"""Seconds in which an adapter that is not there must come back."""


@dataclass(frozen=True)
class Ask:
    """alias: None is the base. take: which of the prompt's answers. n: tokens at most.

    cancel_after: pieces, then it is cancelled. late: seconds until the answer is read.
    """

    alias: str | None
    condition: str | None
    prompt: int
    take: int
    n: int
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    cancel_after: int | None = None
    late: float = 0.0

    @property
    def model(self) -> str | None:
        return self.alias if self.condition is None else f"{self.alias}:{self.condition}"


@dataclass(frozen=True)
class Outcome:
    ask: Ask
    served: Served
    tokens: tuple[int, ...]
    text: str
    logprobs: int
    end: End

    @property
    def key(self) -> Key:
        return self.served.digest, self.ask.condition


def asks(shelf: Shelf, count: int, seed: int) -> list[Ask]:
    """Requests that no near tie can change, whichever adapter their alias holds."""
    draw = random.Random(seed)
    models = [(None, None)] * max(1, len(shelf.folders) // 12)
    models += [(a, c) for a in shelf.folders for c in shelf.conditions.get(a, (None,))]
    result: list[Ask] = []
    while len(result) < count:
        alias, condition = draw.choice(models)
        prompt = draw.randrange(len(shelf.prompts))
        takes = [shelf.alone[key, prompt] for key in shelf.keys(alias, condition)]
        take = draw.randrange(len(takes[0]))
        answers = [answers[take] for answers in takes]
        if not (clear := min(answer.clear for answer in answers)):
            continue
        ask = Ask(alias, condition, prompt, take, draw.randint(1, clear))
        result.append(_varied(ask, answers, draw))
    return result


def _varied(ask: Ask, answers: Sequence[Alone], draw: random.Random) -> Ask:
    kind = draw.random()
    if kind < 0.25 and all(answer.texts is not None for answer in answers):
        stops = [_stop_in(draw.choice(answers), draw) for _ in range(draw.randint(1, 2))]
        ask = replace(ask, stop=tuple(stop for stop in stops if stop))
    elif kind < 0.35:
        ask = replace(ask, logprobs=draw.randint(0, 3))
    elif kind < 0.45:
        ask = replace(ask, cancel_after=draw.randint(0, 4))
    return replace(ask, late=0.05 * draw.random()) if draw.random() < 0.3 else ask


def _stop_in(answer: Alone, draw: random.Random) -> str:
    """A few characters out of an answer, wherever its tokens begin and end."""
    text = (answer.texts or ("",))[-1]
    start = draw.randrange(max(1, len(text)))
    return text[start : start + draw.randint(1, 5)]


def mistakes(
    shelf: Shelf, outcomes: Sequence[Outcome], generations: Mapping[tuple[str, int], str]
) -> list[str]:
    """One sentence for each answer that is not the solo answer of the adapter that it names.

    generations: the digest of each load, by alias and number.
    """
    result = []
    for outcome in outcomes:
        ask, served = outcome.ask, outcome.served
        if ask.alias and generations.get((ask.alias, served.generation)) != served.digest:
            result.append(f"{ask}: no load gave {served}")
        elif outcome.key not in shelf.keys(ask.alias, ask.condition):
            result.append(f"{ask}: answered by {outcome.key}, which the alias never held")
        elif problem := _problem(outcome, shelf.alone[outcome.key, ask.prompt][ask.take]):
            result.append(f"{ask}: {problem}; {outcome.served}")
    return result


def _problem(outcome: Outcome, alone: Alone) -> str | None:
    ask, end = outcome.ask, outcome.end
    tokens, text, reason = expected(ask, alone)
    if end.reason == "cancelled" and ask.cancel_after is not None:
        tokens = tokens[: len(outcome.tokens)]
        text = None if text is None else text[: len(outcome.text)]
    elif end.reason != reason:
        return f"ended by {end}, and alone by {reason}"
    elif end.completion_tokens != len(outcome.tokens):
        return f"{len(outcome.tokens)} tokens, and the end says {end.completion_tokens}"
    if outcome.tokens != tokens:
        return f"tokens {outcome.tokens}, and alone {tokens}"
    if text is not None and outcome.text != text:
        return f"text {outcome.text!r}, and alone {text!r}"
    if outcome.logprobs != (0 if ask.logprobs is None else len(tokens)):
        return f"{outcome.logprobs} log-probabilities for {len(tokens)} tokens"
    return None


def expected(ask: Ask, alone: Alone) -> tuple[tuple[int, ...], str | None, str]:
    """Tokens, text and reason of the end of the solo answer. Text None: it is not compared."""
    tokens = alone.tokens[: ask.n]
    texts = None if alone.texts is None else alone.texts[: ask.n]
    for count, text in enumerate(texts or (), start=1):
        starts = [text.find(stop) for stop in ask.stop if stop in text]
        if starts:
            return tokens[:count], text[: min(starts)], "stop"
    reason = "stop" if tokens[-1] == TOKENIZER.eos_token_id else "length"
    return tokens, None if texts is None else texts[-1], reason


@dataclass
class Traffic:
    """Clients on threads of their own.

    clients: threads. in_flight: answers that each of them waits for at once.
    refused: how often a model was not there just then.
    """

    engine: ServingEngine
    shelf: Shelf
    clients: int = 2
    in_flight: int = 12
    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    refused: int = 0

    def run(self, requests: Sequence[Ask]) -> list[Outcome]:
        threads = [
            threading.Thread(target=self._client, args=(requests[i :: self.clients],))
            for i in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.outcomes

    def _client(self, requests: Sequence[Ask]) -> None:
        try:
            asyncio.run(self._ask_all(requests))
        except BaseException as error:
            self.errors.append(error)

    async def _ask_all(self, requests: Sequence[Ask]) -> None:
        queue = iter(requests)

        async def ask_next() -> None:
            for ask in queue:
                self.outcomes.append(await self.ask(ask))

        await asyncio.gather(*(ask_next() for _ in range(self.in_flight)))

    async def ask(self, ask: Ask) -> Outcome:
        answer = await self._submitted(ask)
        pieces: list[Piece] = []
        await asyncio.sleep(ask.late)
        if ask.cancel_after == 0:
            answer.cancel()
        async for event in answer:
            if isinstance(event, End):
                return _outcome(ask, answer.served, pieces, event)
            pieces.append(event)
            if ask.cancel_after == len(pieces):
                answer.cancel()
        raise AssertionError("an answer without an end")

    async def _submitted(self, ask: Ask):
        answers = next(v for (_, prompt), v in self.shelf.alone.items() if prompt == ask.prompt)
        job = Job(
            tenant=f"tenant{ask.prompt % 3}",
            model=ask.model or self.engine.base_name,
            prompt=self.shelf.prompts[ask.prompt],
            sampling=replace(answers[ask.take].sampling, max_new_tokens=ask.n),
            stop=ask.stop,
            logprobs=ask.logprobs,
        )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.engine.submit(job)
            except (ModelNotFound, Unavailable):  # it is unloaded, and will come back
                if time.monotonic() > until:
                    raise
                self.refused += 1
                await asyncio.sleep(0.005)


def _outcome(ask: Ask, served: Served, pieces: Sequence[Piece], end: End) -> Outcome:
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    text = "".join(piece.text for piece in pieces)
    return Outcome(ask, served, tokens, text, sum(len(p.logprobs) for p in pieces), end)


@dataclass
class Changes:
    """What was done to the adapters of an engine. generations: the digest of each load."""

    engine: ServingEngine
    generations: dict[tuple[str, int], str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def load(self, alias: str, folder: Path) -> None:
        """Load, and again if there is no room just then."""
        while True:
            with suppress(Unavailable):
                new = self.engine.store.load(alias, folder)
                self.generations[alias, new.number] = new.digest
                self.counts["loads"] += 1
                return
            self.counts["no room"] += 1

    def reload(self, alias: str, folder: Path) -> None:
        self.engine.store.unload(alias)
        self.counts["unloads"] += 1
        self.load(alias, folder)


@contextmanager
def going_on(done: Changes, shelf: Shelf, *, seed: int, pause: float = 0.0) -> Iterator[None]:
    """Inside the block adapters are replaced, unloaded and loaded again, on two threads."""
    stop, draw = threading.Event(), random.Random(seed)
    twice = [alias for alias, folders in shelf.folders.items() if len(folders) > 1]
    once = [alias for alias, folders in shelf.folders.items() if len(folders) == 1]

    def work(change: Callable[[str, Path], None], aliases: Sequence[str]) -> None:
        while aliases and not stop.wait(pause * draw.random()):
            alias = draw.choice(aliases)
            try:
                change(alias, draw.choice(shelf.folders[alias]))
            except Exception as error:
                done.counts[f"failed: {error!r}"] += 1

    threads = [
        threading.Thread(target=work, args=args)
        for args in ((done.load, twice), (done.reload, once))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
