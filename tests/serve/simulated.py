"""A server without a model, for the laws of the scheduler: slots, and a clock set by hand."""

from collections import Counter
from collections.abc import Mapping

from lorica.serve.quota import Quota
from lorica.serve.scheduler import INPUT_WEIGHT, OUTPUT_WEIGHT, Scheduler, Ticket

STEP = 0.05
"""Seconds of one step, in which each running ticket gets one token."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SimulatedServer:
    """served: weighted tokens by tenant. freed: slots that have become free so far."""

    def __init__(
        self,
        slots: int,
        *,
        kind: type[Scheduler] = Scheduler,
        quotas: Mapping[str, Quota] | None = None,
        max_queued: int = 10_000,
        reserved: int = 0,
    ):
        self.clock, self.slots = Clock(), slots
        self.scheduler = kind(
            clock=self.clock,
            max_queued=max_queued,
            max_queued_per_tenant=max_queued,
            quotas=quotas or {},
            reserved=reserved,
        )
        self.lengths: dict[Ticket, int] = {}
        self.active: list[Ticket] = []
        self.served: Counter[str] = Counter()
        self.freed = 0

    def submit(self, tenant: str, prompt: int, length: int, limit: int | None = None) -> Ticket:
        """Queue a request whose answer will have `length` of at most `limit` tokens."""
        ticket = self.scheduler.submit(tenant, prompt, limit or length)
        self.lengths[ticket] = length
        return ticket

    def step(self) -> None:
        for ticket in self.scheduler.admit(self.slots - len(self.active)):
            self.served[ticket.tenant] += INPUT_WEIGHT * ticket.prompt_tokens
            self.active.append(ticket)
        for ticket in list(self.active):
            self.scheduler.charge(ticket, 1)
            self.served[ticket.tenant] += OUTPUT_WEIGHT
            if ticket.computed == self.lengths[ticket]:
                self.scheduler.finish(ticket)
                self.active.remove(ticket)
                self.freed += 1
        self.clock.now += STEP
