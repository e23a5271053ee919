"""Decide whose request gets the next free slot: fair in tokens between tenants, within quotas.

Virtual token counters after Sheng et al. 2024, "Fairness in Serving Large Language Models"
(VTC, arXiv:2401.00588). Each tenant has a counter of the weighted tokens that were computed for
it: those of a prompt when its ticket gets a slot, those of an answer as they come. A free slot
goes to the waiting tenant with the least counter, so nobody waits for another's long queue. Within
a tenant tickets are first in, first out.

A tenant that had nothing waiting collects no credit: when it has again, its counter is lifted to
the virtual time, the counter with which the last slot was given. (VTC lifts it to the least
counter of those that wait, which is at least the virtual time. With the virtual time the bound
also holds for a tenant whose answers are still being written when it asks again.)

**Bound.** A tenant is backlogged while a ticket of it could have a slot: it is ready, in time, and
the tenant's `streams` are not used up.
With S slots, prompts of at most P tokens and answers of at most G tokens, the counters of two
backlogged tenants differ at any time by at most

    U = INPUT_WEIGHT * P + OUTPUT_WEIGHT * S * G

and the weighted tokens served to them in any interval in which both are backlogged by at most 2U.
Proof: the virtual time v never falls, and no backlogged counter is below it. When a tenant gets a
slot its counter equals v; until its next slot it grows by that prompt and by the answers of at
most S slots. Lifting sets a counter to v, which keeps both.

Plain data: no torch, no threads, no asyncio. The engine calls it from one thread, or under a lock.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorica.errors import counted
from lorica.serve.quota import SHORTEST_RETRY, Quota, SlidingMinute, check_quota
from lorica.serve.refusals import InvalidRequest, TooManyRequests

INPUT_WEIGHT, OUTPUT_WEIGHT = 1, 2
"""Cost of a token of a prompt, and of an answer, which takes a step of its own."""

State = Literal["queued", "running", "finished", "cancelled"]


@dataclass(eq=False)
class Ticket:
    """One answer that waits for a slot, or is being written.

    is_ready: it can have a slot; else it waits for more than that (its adapter is loading).
    deadline: time of the clock at which it is given up; None: never. submitted, started: times of
    the clock. computed: tokens of the answer so far.
    """

    tenant: str
    prompt_tokens: int
    max_new_tokens: int
    deadline: float | None
    submitted: float
    is_ready: bool = True
    started: float | None = None
    state: State = "queued"
    computed: int = 0


@dataclass(eq=False)
class _Tenant:
    """counter: weighted tokens, lifted. reserved: tokens that its tickets may still compute."""

    quota: Quota
    counter: int = 0
    reserved: int = 0
    queue: deque[Ticket] = field(default_factory=deque)
    running: set[Ticket] = field(default_factory=set)
    requests: SlidingMinute = field(default_factory=SlidingMinute)
    tokens: SlidingMinute = field(default_factory=SlidingMinute)

    @property
    def has_stream(self) -> bool:
        """Whether its quota lets one more of its tickets run."""
        return self.quota.streams is None or len(self.running) < self.quota.streams

    def head(self, now: float) -> Ticket | None:
        """The ticket that could have a slot now; None if the tenant is not backlogged."""
        if not self.has_stream:
            return None
        return next((t for t in self.queue if t.is_ready and not _is_late(t, now)), None)


class Scheduler:
    """Admission, fairness, quotas and deadlines of the tickets of all tenants.

    clock: gives seconds, and never goes back. max_queued: tickets that may wait, of all tenants;
    max_queued_per_tenant: of one. quotas: by tenant; one that is not in it has no limits.
    reserved: slots, of all that there are, for a tenant whose turn it is and that has none: it need
    not wait until an answer of another one ends.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_queued: int,
        max_queued_per_tenant: int,
        quotas: Mapping[str, Quota],
        reserved: int = 0,
    ):
        self._clock, self._quotas, self._reserved = clock, dict(quotas), reserved
        self._max_queued, self._max_queued_per_tenant = max_queued, max_queued_per_tenant
        self._tenants: dict[str, _Tenant] = {}
        self._virtual_time = 0
        self._durations: deque[float] = deque(maxlen=16)  # of the last answers, in seconds

    @property
    def queued(self) -> int:
        """How many tickets wait."""
        return sum(len(tenant.queue) for tenant in self._tenants.values())

    @property
    def running(self) -> int:
        """How many tickets have a slot."""
        return sum(len(tenant.running) for tenant in self._tenants.values())

    @property
    def has_ready(self) -> bool:
        """Whether a ticket waits that could have a slot now."""
        now = self._clock()
        return any(account.head(now) is not None for account in self._tenants.values())

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """Other quotas, from the next request on."""
        self._quotas = dict(quotas)
        for name, account in self._tenants.items():
            account.quota = self._quotas.get(name, Quota())

    def submit(
        self,
        tenant: str,
        prompt_tokens: int,
        max_new_tokens: int,
        deadline: float | None = None,
        *,
        is_ready: bool = True,
    ) -> Ticket:
        """`submit_all` for a request with one answer."""
        sizes = [(prompt_tokens, max_new_tokens)]
        return self.submit_all(tenant, sizes, deadline, is_ready=is_ready)[0]

    def submit_all(
        self,
        tenant: str,
        sizes: Sequence[tuple[int, int]],
        deadline: float | None = None,
        *,
        is_ready: bool = True,
    ) -> list[Ticket]:
        """Queue a ticket for each answer of one request. A refusal changes nothing.

        sizes: (prompt_tokens, max_new_tokens) of each. is_ready: if not, see `make_ready`.
        Raises: TooManyRequests if a queue is full or a quota is used up; its retry_after says
            when there will be room. InvalidRequest if the queue or the quota never has so much.
        """
        now = self._clock()
        account = self._tenants.get(tenant) or _Tenant(self._quotas.get(tenant, Quota()))
        tokens = sum(map(sum, sizes))
        self._check_queues(account, len(sizes), now)
        check_quota(account.quota, account.requests, account.tokens, account.reserved, tokens, now)
        self._tenants[tenant] = account
        tickets = [Ticket(tenant, *size, deadline, now, is_ready) for size in sizes]
        if account.head(now) is None:
            self._lift(account)
        account.queue.extend(tickets)
        account.requests.add(now, 1)
        account.reserved += tokens
        return tickets

    def make_ready(self, ticket: Ticket) -> None:
        """A ticket that was queued not ready can have a slot from now on."""
        account = self._tenants[ticket.tenant]
        if account.head(self._clock()) is None:
            self._lift(account)
        ticket.is_ready = True

    def admit(self, free: int) -> list[Ticket]:
        """Give up to `free` slots to waiting tickets, and return these: they run from now on. The
        last `reserved` ones only go to a tenant that has none.

        A ticket past its deadline gets none.
        """
        now, admitted = self._clock(), []
        while len(admitted) < free:
            heads = [
                (account.counter, head.submitted, head)
                for account in self._tenants.values()
                if (head := account.head(now))
            ]
            if not heads:
                break
            *_, ticket = min(heads, key=lambda head: head[:2])
            if free - len(admitted) <= self._reserved and self._tenants[ticket.tenant].running:
                break
            self._start(ticket, now)
            admitted.append(ticket)
        return admitted

    def charge(self, ticket: Ticket, tokens: int) -> None:
        """Count tokens of a running ticket's answer.

        Raises: ValueError if it does not run, or gets more tokens than it asked for.
        """
        if ticket.state != "running" or not 0 <= tokens <= ticket.max_new_tokens - ticket.computed:
            raise ValueError(f"{counted(tokens, 'token')} cannot be charged to {ticket}")
        ticket.computed += tokens
        self._count(self._tenants[ticket.tenant], prompt=0, answer=tokens)

    def finish(self, ticket: Ticket) -> None:
        """A running ticket's answer is complete. Ignored if it has ended already."""
        if ticket.state == "queued":
            raise ValueError(f"it waits, and cannot be finished: {ticket}")
        self._end(ticket, "finished")

    def cancel(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue, or out of its slot. Ignored if it has ended already."""
        self._end(ticket, "cancelled")

    def expired(self) -> list[Ticket]:
        """The tickets, waiting or running, whose deadline has passed; the caller cancels them."""
        now = self._clock()
        return [
            ticket
            for account in self._tenants.values()
            for ticket in (*account.queue, *account.running)
            if _is_late(ticket, now)
        ]

    def _start(self, ticket: Ticket, now: float) -> None:
        account = self._tenants[ticket.tenant]
        self._virtual_time = max(self._virtual_time, account.counter)
        account.queue.remove(ticket)
        account.running.add(ticket)
        ticket.state, ticket.started = "running", now
        self._count(account, prompt=ticket.prompt_tokens, answer=0)

    def _count(self, account: _Tenant, *, prompt: int, answer: int) -> None:
        """Count tokens that are computed for a tenant."""
        account.counter += INPUT_WEIGHT * prompt + OUTPUT_WEIGHT * answer
        account.reserved -= prompt + answer
        account.tokens.add(self._clock(), prompt + answer)

    def _end(self, ticket: Ticket, state: State) -> None:
        account, now = self._tenants[ticket.tenant], self._clock()
        if ticket.state == "queued":
            account.queue.remove(ticket)
            account.reserved -= ticket.prompt_tokens
        elif ticket.state == "running":
            if account.head(now) is None:  # it waited for a stream of its own, not for others
                self._lift(account)
            account.running.remove(ticket)
            self._durations.append(now - (ticket.started or 0.0))
        else:
            return
        account.reserved -= ticket.max_new_tokens - ticket.computed
        ticket.state = state

    def _lift(self, account: _Tenant) -> None:
        account.counter = max(account.counter, self._virtual_time)

    def _check_queues(self, account: _Tenant, count: int, now: float) -> None:
        """Raises: TooManyRequests if `count` more have no place in all tenants' queue, or in this
        one's; InvalidRequest if they never have."""
        most = min(self._max_queued, self._max_queued_per_tenant)
        if count > most:
            raise InvalidRequest(
                f"the request asks for {count} answers; of one key at most {most} may wait.",
                fix="send several requests",
                param="n",
            )
        if self.queued + count > self._max_queued:
            raise TooManyRequests(
                "the queue is full.",
                fix="try again later",
                retry_after=self._seconds_until_slot(self.running),
            )
        if len(account.queue) + count > self._max_queued_per_tenant:
            backlogged = sum(other.head(now) is not None for other in self._tenants.values())
            shared = self._seconds_until_slot(self.running) * max(1, backlogged)
            own = 0.0 if account.has_stream else self._seconds_until_slot(len(account.running))
            raise TooManyRequests(
                f"{counted(len(account.queue), 'answer')} of this key wait already.",
                fix="send the next one when an answer is complete",
                retry_after=max(shared, own),
            )

    def _seconds_until_slot(self, slots: int) -> float:
        """After how many seconds one of `slots` slots becomes free, by the last answers."""
        mean = sum(self._durations) / max(1, len(self._durations))
        return max(SHORTEST_RETRY, mean / max(1, slots))


def _is_late(ticket: Ticket, now: float) -> bool:
    return ticket.deadline is not None and ticket.deadline <= now
