"""The engine: one thread that owns the model, its decoder and its resident adapters.

HTTP threads submit jobs and get answers, which fill up as the thread steps. What changes the model
(an adapter that is added or removed) runs between two steps, on this thread too, so that a forward
pass sees one state of everything.

    submit ─► scheduler ─► a slot of the decoder ─► pieces of text ─► the answer's event loop
    store  ─► BetweenSteps.run ─► bank
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorica.generation.decoder import Decoder
from lorica.generation.row import Row
from lorica.serve.answers import StreamedAnswer, wake
from lorica.serve.between_steps import BetweenSteps
from lorica.serve.exchange import End, EndReason, EngineStats, Job, ModelCard
from lorica.serve.models import Models, Target
from lorica.serve.probe import answers
from lorica.serve.quota import Quota
from lorica.serve.refusals import Refusal, Unavailable
from lorica.serve.scheduler import Scheduler, Ticket
from lorica.serve.warming import Warming
from lorica.serve.work import Work

IDLE = 0.25
"""Seconds between two looks for deadlines while no row is decoded."""
PROBE_PAUSE = 1.0
"""Seconds between two probes of a model that fails."""
FAILED = "the server failed while it wrote the answer; its log has the reason."
log = logging.getLogger("lorica.serve")


class ServingEngine:
    """See serve/exchange.py `Engine`. `start` begins to serve, `close` ends it.

    models: names, prompts and adapters of what is served. decoder: over the served model.
    changed: the condition of `between_steps`; all fields that threads share are under it.
    """

    def __init__(
        self,
        models: Models,
        decoder: Decoder,
        scheduler: Scheduler,
        between_steps: BetweenSteps,
        changed: threading.Condition,
    ):
        self.base_name, self.max_length = models.base_name, models.max_length
        self.is_ready, self.is_draining = False, False
        self.store = models.store
        self._models, self._decoder, self._scheduler = models, decoder, scheduler
        self._between_steps, self._changed = between_steps, changed
        self._works: dict[Ticket, Work] = {}
        self._rows: dict[Row, Work] = {}
        self._to_cancel: list[StreamedAnswer] = []
        self._is_closing, self._is_suspect = False, False
        self._warming = Warming(
            self._on_loaded, self._on_not_loaded, patience=models.store.residency.patience
        )
        self._thread = threading.Thread(target=self._run, name="lorica-engine", daemon=True)

    # -- for other threads ------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._warming.start()
        self.is_ready = True

    def cards(self) -> list[ModelCard]:
        return self._models.cards()

    def card(self, model: str) -> ModelCard:
        return self._models.card(model)

    def encode(self, model: str, prompt: str) -> tuple[int, ...]:
        return self._models.prompts(model).encode(prompt)

    def encode_chat(
        self, model: str, messages: list[dict[str, str]], template: str | None = None
    ) -> tuple[int, ...]:
        return self._models.prompts(model).encode_chat(messages, template)

    def stats(self) -> EngineStats:
        with self._changed:
            running, works = len(self._rows), len(self._works)
        return self._models.stats(works - running, running, self._decoder.slots)

    def submit(self, job: Job) -> StreamedAnswer:
        """`submit_all` for a request with one answer."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[StreamedAnswer]:
        """See `Engine`. An adapter that is not in memory is loaded first: see `Warming`."""
        targets: list[Target] = []
        try:
            for job in jobs:
                targets.append(self._models.reserve(job.model))
            works = self._queued(jobs, targets)
        except BaseException:
            for target in targets:
                target.release()
            raise
        self._warming.add([work for work in works if not work.ticket.is_ready])
        return [work.answer for work in works]

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """Other quotas of the tenants, from the next request on. Running answers go on."""
        with self._changed:
            self._scheduler.set_quotas(quotas)

    def drain(self, timeout: float) -> int:
        """See `Engine`. The thread goes on: `close` ends it."""
        with self._changed:
            self.is_draining = True
            self._changed.wait_for(lambda: not self._works, timeout)
            rest = list(self._works.values())
        return self._between_steps.run(lambda: self._end_all(rest, "shutdown"))

    def close(self) -> None:
        """End all answers, and the thread."""
        with self._changed:
            self.is_ready, self._is_closing = False, True
            self._changed.notify()
        self._thread.join()
        self._warming.close()
        self._models.close()

    def _queued(self, jobs: Sequence[Job], targets: Sequence[Target]) -> list[Work]:
        """The jobs as work that waits for slots. Raises: Refusal."""
        requests = list(map(self._models.request, jobs, targets))
        with self._changed:
            if self.is_draining or not self.is_ready:
                state = "shutting down" if self.is_draining else "not ready"
                raise Unavailable(f"the server is {state}.", retry_after=5, fix="try again later")
            first = jobs[0]
            tickets = self._scheduler.submit_all(
                first.tenant,
                [(len(job.prompt), job.sampling.max_new_tokens) for job in jobs],
                None if first.deadline is None else time.monotonic() + first.deadline,
                is_ready=targets[0].is_resident,
            )
            answers = [StreamedAnswer(target.served, self._cancel) for target in targets]
            parts = zip(jobs, targets, tickets, requests, answers, strict=True)
            works = [Work(*part) for part in parts]
            self._works.update(zip(tickets, works, strict=True))
            self._changed.notify()
        return works

    def _on_loaded(self, work: Work) -> None:
        with self._changed:
            self._scheduler.make_ready(work.ticket)
            self._changed.notify()

    def _on_not_loaded(self, work: Work, error: Exception) -> None:
        """End an answer whose adapter could not be loaded."""
        refusal = error if isinstance(error, Refusal) else None
        sentence = "its adapter failed." if refusal is None else refusal.what
        self._between_steps.run(lambda: self._end_all([work], "error", sentence, refusal))

    def _cancel(self, answer: StreamedAnswer) -> None:
        with self._changed:
            self._to_cancel.append(answer)
            self._changed.notify()

    # -- the engine's thread ----------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        self._between_steps.own()
        while not self._is_closing:
            try:
                self._take_turn()
            except Exception as error:  # the thread goes on: all answers and loads need it
                self._fail(error)
        self._end_all(list(self._works.values()), "shutdown")
        self._between_steps.disown()

    def _take_turn(self) -> None:
        """What waits between two steps, and a step."""
        with self._changed:
            if not self._rows:
                self._changed.wait_for(self._is_busy, IDLE if self.is_ready else PROBE_PAUSE)
            cancelled = set(map(id, self._to_cancel))
            self._to_cancel.clear()
            unwanted = [work for work in self._works.values() if id(work.answer) in cancelled]
            late = [self._works[t] for t in self._scheduler.expired() if t in self._works]
        self._between_steps.run_all()
        self._end_all(unwanted, "cancelled")
        self._end_all(late, "deadline")
        if self._is_suspect and not self._rows:
            self._probe()
        if not self._is_suspect:
            self._admit()
        if self._rows:
            self._step()

    def _is_busy(self) -> bool:
        """Whether there is something to do while no row is decoded."""
        waits = self._to_cancel or self._between_steps or self._is_closing
        return bool(waits) or (self.is_ready and (self._scheduler.has_ready or self._is_suspect))

    def _admit(self) -> None:
        """Give free slots to the tickets whose turn it is. The first prompt of a tenant that has no
        answer in the making is read before others."""
        with self._changed:
            tickets = self._scheduler.admit(self._decoder.free)
            works = [self._works[ticket] for ticket in tickets]
        tenants = {work.ticket.tenant for work in self._rows.values()}
        for work in works:
            ahead = work.ticket.tenant not in tenants
            tenants.add(work.ticket.tenant)
            try:
                (work.row,) = self._decoder.admit([work.request], ahead=ahead)
            except Exception:
                log.exception("a request could not get a slot")
                self._end_all([work], "error", FAILED)
                continue
            self._rows[work.row] = work

    def _step(self) -> None:
        rows = self._decoder.step()
        if rows:
            self._is_suspect = all(row.ended == "error" for row in rows)
        works = [self._rows[row] for row in rows]
        with self._changed:
            for work, row in zip(works, rows, strict=True):
                self._scheduler.charge(work.ticket, len(row.tokens) - work.ticket.computed)
        for work, row in zip(works, rows, strict=True):
            try:
                work.send(self._models.token_text)
            except Exception:
                log.exception("the text of an answer could not be sent")
                self._end_all([work], "error", FAILED)
                continue
            if row.ended is not None:
                self._finish(work, row.ended, row.error)
        wake(work.answer for work in works)

    def _finish(
        self,
        work: Work,
        reason: EndReason,
        error: str | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """The last event of an answer, whose row has left the decoder."""
        count = 0 if work.row is None else len(work.row.tokens)
        with self._changed:
            self._works.pop(work.ticket, None)
            if work.row is not None:
                self._rows.pop(work.row, None)
            end = self._scheduler.cancel if work.row is None else self._scheduler.finish
            end(work.ticket)
            self._changed.notify_all()
        work.answer.put(End(reason, len(work.job.prompt), count, error, refusal))
        work.target.release()

    def _end_all(self, works: list[Work], reason: EndReason, *why: Any) -> int:
        """End answers before their time; why: see `_finish`. Returns: how many were still open."""
        still_open = [work for work in works if work.ticket in self._works]
        for work in still_open:
            if work.row is not None:
                self._cancel_row(work.row)
            self._finish(work, reason, *why)
        wake(work.answer for work in still_open)
        return len(still_open)

    def _cancel_row(self, row: Row) -> None:
        try:
            self._decoder.cancel(row)
        except Exception:  # the answer must end all the same
            log.exception("a slot could not be freed")

    def _fail(self, error: Exception) -> None:
        """A turn failed: the answers that have a slot cannot go on. Then the model is probed."""
        log.error("a decoding step failed", exc_info=error)
        self._is_suspect = True
        with self._changed:
            running = [work for work in self._works.values() if work.ticket.state == "running"]
        self._end_all(running, "error", FAILED)

    def _probe(self) -> None:
        """Learn whether the base answers. Until it does the server is not ready, and those who wait
        are not admitted."""
        passes = answers(self._decoder, self._models.probe())
        with self._changed:
            if passes != self.is_ready and not self._is_closing:
                log.error("the model %s", "works again" if passes else "fails at every request")
            self.is_ready = passes and not self._is_closing
        self._is_suspect = not passes
