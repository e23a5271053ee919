"""What is served under which name: the base, and the adapters of the store."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from lorica.base.load import LoadedModel
from lorica.base.model_view import config_view_of
from lorica.data.prompt_format import PromptFormat
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from lorica.serve.exchange import EngineStats, Job, ModelCard, Served
from lorica.serve.prompts import Prompts, check_job
from lorica.serve.refusals import ModelNotFound, Refusal, Replaced
from lorica.serve.served_templates import ServedTemplates
from lorica.serve.store import Lease, Store

MOST_PROMPTS = 256
"""Generations whose prompt formats are kept compiled."""


@dataclass(frozen=True)
class Target:
    """The model of one job, held until `release`.

    prompts: how its prompts are written. max_length: tokens of prompt and answer together.
    lease: on an adapter; None: the base.
    """

    served: Served
    prompts: Prompts
    max_length: int
    lease: Lease | None

    @property
    def key(self) -> str | None:
        """Of the adapter in the bank; None: the base."""
        return None if self.lease is None else self.lease.key

    @property
    def is_resident(self) -> bool:
        return self.lease is None or self.lease.is_resident

    def ensure(self, *, waits: bool = True) -> None:
        """Put the adapter into the bank unless it is there. May be slow. waits: for room.

        Raises: NoRoom, LoricaError.
        """
        if self.lease is not None:
            self.lease.ensure(waits=waits)

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()


class Models:
    """loaded: the base. max_length: tokens of prompt and answer together, for the base."""

    def __init__(self, loaded: LoadedModel, store: Store, *, base_name: str, max_length: int):
        self.base_name, self.max_length = base_name, max_length
        self.vocabulary = int(config_view_of(loaded.model).vocab_size or len(loaded.tokenizer))
        self.store, self._tokenizer = store, loaded.tokenizer
        self._templates = ServedTemplates()
        longest = max(map(len, loaded.tokenizer.get_vocab()), default=1)

        def prompts_of(form: PromptFormat | None) -> Prompts:
            most = max_length * longest
            return Prompts(loaded, form, most_characters=most, templates=self._templates)

        self._of_base = prompts_of(None)
        self._prompts_of = lru_cache(MOST_PROMPTS)(
            lambda generation: prompts_of(generation.prompt_format)
        )
        self.token_text = lru_cache(100_000)(self._token_text)

    def cards(self) -> list[ModelCard]:
        """The base first, then every alias."""
        return [self._base_card(), *map(self._completed, self.store.cards())]

    def card(self, model: str) -> ModelCard:
        """Raises: ModelNotFound."""
        if model == self.base_name:
            return self._base_card()
        alias, colon, condition = model.partition(":")
        if colon:
            self.store.generation(model).key_of(condition)  # is it one of its conditions?
        try:
            (card,) = self.store.cards(alias)
        except ModelNotFound:
            raise ModelNotFound(model) from None
        return replace(self._completed(card), name=model)

    def prompts(self, model: str) -> Prompts:
        """Raises: ModelNotFound."""
        target = self.reserve(model)
        target.release()
        return target.prompts

    def reserve(self, model: str) -> Target:
        """What `model` means now. Quick. Raises: ModelNotFound."""
        if model == self.base_name:
            return Target(Served(model, None, "", 0), self._of_base, self.max_length, None)
        lease = self.store.reserve(model)
        own = lease.generation
        try:
            prompts = self._prompts_of(own)
        except BaseException:
            lease.release()
            raise
        served = Served(model, own.alias, own.digest, own.number)
        return Target(served, prompts, self.max_length - own.positions, lease)

    def request(self, job: Job, target: Target) -> Request:
        """What the decoder is asked for a job. Raises: InvalidRequest; Replaced if the job's prompt
        was written for another generation."""
        if job.generation not in (None, target.served.generation):
            raise Replaced(job.model)
        check_job(job, target.max_length, self.vocabulary)
        return Request(
            prompt=job.prompt,
            sampling=job.sampling,
            stops=target.prompts.stops(job.chat, job.stop),
            adapter=target.key,
            logprobs=job.logprobs,
            has_text=True,
        )

    def probe(self) -> Request:
        """A request for one token of the base."""
        sampling = Sampling(max_new_tokens=1)
        return Request(prompt=(0,), sampling=sampling, stops=Stops(self._tokenizer))

    def stats(self, queued: int, running: int, slots: int) -> EngineStats:
        residency = self.store.residency
        return EngineStats(
            queued=queued,
            running=running,
            slots=slots,
            resident_bytes=residency.total,
            loads=residency.loads,
            evictions=residency.evictions,
            load_seconds=tuple(residency.load_seconds),
        )

    def close(self) -> None:
        self.store.close()
        self._templates.close()

    def _base_card(self) -> ModelCard:
        return ModelCard(
            name=self.base_name,
            parent=None,
            digest="",
            generation=0,
            state="resident",
            pinned=True,
            chat=self._of_base.is_chat,
            max_length=self.max_length,
        )

    def _completed(self, card: ModelCard) -> ModelCard:
        """A card of the store, with what depends on the base."""
        chat, max_length = True, self.max_length
        with suppress(Refusal):  # not loaded yet, or unloaded just now
            generation = self.store.generation(card.name)
            chat = self._prompts_of(generation).is_chat
            max_length -= generation.positions
        return replace(card, parent=self.base_name, chat=chat, max_length=max_length)

    def _token_text(self, token: int) -> str:
        return self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
