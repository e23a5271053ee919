"""Laws of queues, quotas, deadlines and cancel, over arbitrary orders of calls."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lorica.serve.quota import MINUTE, Quota
from lorica.serve.refusals import InvalidRequest, TooManyRequests
from lorica.serve.scheduler import Scheduler, Ticket
from tests.serve.simulated import Clock

QUOTAS = {
    "few": Quota(requests_per_minute=4),
    "short": Quota(tokens_per_minute=60),
    "narrow": Quota(streams=2, requests_per_minute=20),
}
TENANTS = [*QUOTAS, "free"]
SLOTS, MAX_QUEUED, MAX_QUEUED_PER_TENANT = 4, 8, 5
LONGEST = 12  # tokens of a prompt, and of an answer


@dataclass
class Events:
    """times: of accepted requests. tokens: (time, how many) that were computed. submitted:
    tickets that were ready at once and have no deadline. started: all that had a slot."""

    times: list[float] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    submitted: list[Ticket] = field(default_factory=list)
    started: list[Ticket] = field(default_factory=list)


def make(clock: Clock) -> Scheduler:
    return Scheduler(
        clock=clock,
        max_queued=MAX_QUEUED,
        max_queued_per_tenant=MAX_QUEUED_PER_TENANT,
        quotas=QUOTAS,
    )


class Calls(RuleBasedStateMachine):
    """`twin` is never asked what `scheduler` refused: they must not differ."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.scheduler, self.twin = make(self.clock), make(self.clock)
        self.twins: dict[Ticket, Ticket] = {}
        self.events = {tenant: Events() for tenant in TENANTS}

    def tickets(self, *states: str) -> list[Ticket]:
        return [ticket for ticket in self.twins if ticket.state in states]

    def choose(self, number: int, *states: str) -> Ticket | None:
        tickets = self.tickets(*states)
        return tickets[number % len(tickets)] if tickets else None

    @rule(
        tenant=st.sampled_from([*TENANTS, "narrow", "narrow"]),
        sizes=st.lists(
            st.tuples(st.integers(1, LONGEST), st.integers(1, LONGEST)), min_size=1, max_size=3
        ),
        patience=st.none() | st.floats(0.1, 90),
        is_ready=st.sampled_from([True, True, False]),
    )
    def submit(self, tenant, sizes, patience, is_ready):
        deadline = None if patience is None else self.clock() + patience
        waiting = [t for t in self.tickets("queued") if t.tenant == tenant]
        try:
            tickets = self.scheduler.submit_all(tenant, sizes, deadline, is_ready=is_ready)
        except TooManyRequests as refusal:
            assert refusal.retry_after and refusal.retry_after >= 1
            return
        except InvalidRequest:
            assert tenant == "short" and sum(map(sum, sizes)) > 60
            return
        assert len(self.tickets("queued")) + len(sizes) <= MAX_QUEUED
        assert len(waiting) + len(sizes) <= MAX_QUEUED_PER_TENANT
        twins = self.twin.submit_all(tenant, sizes, deadline, is_ready=is_ready)
        self.twins.update(zip(tickets, twins, strict=True))
        self.events[tenant].times.append(self.clock())
        if is_ready and deadline is None:
            self.events[tenant].submitted.extend(tickets)

    @rule(number=st.integers(0, 99))
    def make_ready(self, number):
        if ticket := self.choose(number, "queued", "running", "finished", "cancelled"):
            self.scheduler.make_ready(ticket)
            self.twin.make_ready(self.twins[ticket])

    @rule()
    def admit(self):
        free = SLOTS - len(self.tickets("running"))
        admitted = self.scheduler.admit(free)
        assert [self.twins[t] for t in admitted] == self.twin.admit(free), "a refusal changed it"
        for ticket in admitted:
            assert ticket.is_ready
            assert ticket.deadline is None or ticket.deadline > self.clock()
            self.events[ticket.tenant].tokens.append((self.clock(), ticket.prompt_tokens))
            self.events[ticket.tenant].started.append(ticket)
        if len(admitted) < free:  # work conserving
            late = self.scheduler.expired()
            for ticket in set(self.tickets("queued")) - set(late):
                is_full = self.streams(ticket.tenant) == QUOTAS.get(ticket.tenant, Quota()).streams
                assert is_full or not ticket.is_ready
            assert not self.scheduler.has_ready

    @rule(number=st.integers(0, 99), tokens=st.integers(1, LONGEST))
    def charge(self, number, tokens):
        if ticket := self.choose(number, "running"):
            tokens = min(tokens, ticket.max_new_tokens - ticket.computed)
            self.scheduler.charge(ticket, tokens)
            self.twin.charge(self.twins[ticket], tokens)
            self.events[ticket.tenant].tokens.append((self.clock(), tokens))

    @rule(number=st.integers(0, 99))
    def finish(self, number):
        if ticket := self.choose(number, "running", "finished", "cancelled"):
            self.scheduler.finish(ticket)
            self.twin.finish(self.twins[ticket])

    @rule(number=st.integers(0, 99))
    def cancel(self, number):
        if ticket := self.choose(number, "queued", "running", "finished", "cancelled"):
            self.scheduler.cancel(ticket)
            self.twin.cancel(self.twins[ticket])

    @rule()
    def expire(self):
        late = self.scheduler.expired()
        assert set(late) == {
            t
            for t in self.tickets("queued", "running")
            if t.deadline is not None and t.deadline <= self.clock()
        }
        for ticket in late:
            self.scheduler.cancel(ticket)
            self.twin.cancel(self.twins[ticket])
        assert not self.scheduler.expired()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 7.0, 20.0, 59.5]))
    def wait(self, seconds):
        self.clock.now += seconds

    def streams(self, tenant: str) -> int:
        return sum(ticket.tenant == tenant for ticket in self.tickets("running"))

    @invariant()
    def quotas_hold_in_every_window(self):
        """Each window of a minute ends at, or before, an event: so it is enough to look now."""
        begin = self.clock() - MINUTE
        few, short = self.events["few"].times, self.events["short"].tokens
        assert sum(time > begin for time in few) <= 4
        assert sum(tokens for time, tokens in short if time > begin) <= 60
        assert self.streams("narrow") <= 2

    @invariant()
    def counts_are_those_of_the_tickets(self):
        assert self.scheduler.queued == len(self.tickets("queued"))
        assert self.scheduler.running == len(self.tickets("running")) <= SLOTS

    @invariant()
    def first_in_is_first_out(self):
        """Of the tickets that could start at any time, those that did are in their order."""
        for events in self.events.values():
            started = [t for t in events.started if t in events.submitted]
            assert started == [t for t in events.submitted if t in events.started]

    def teardown(self):
        """When all has ended and a minute has passed, every quota is whole again."""
        for ticket in self.tickets("queued", "running"):
            self.scheduler.cancel(ticket)
        self.clock.now += MINUTE + 0.001
        assert self.scheduler.queued == self.scheduler.running == 0
        self.scheduler.submit("short", 30, 30)
        for tenant, count in (("few", 4), ("narrow", 2)):
            for _ in range(count):
                self.scheduler.submit(tenant, 1, 1)
        admitted = self.scheduler.admit(100)
        assert len(admitted) == 7 and not self.scheduler.queued


Calls.TestCase.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, derandomize=True, database=None
)
TestCalls = Calls.TestCase


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    return make(clock)


def refusal_of(scheduler: Scheduler, tenant: str, prompt: int = 1, answer: int = 1):
    with pytest.raises(TooManyRequests) as caught:
        scheduler.submit(tenant, prompt, answer)
    return caught.value


def test_retry_after_a_quota_of_requests_is_exact(clock, scheduler):
    for _ in range(4):
        scheduler.cancel(scheduler.submit("few", 1, 1))
        clock.now += 5
    refusal = refusal_of(scheduler, "few")
    assert "4 requests per minute" in str(refusal) and refusal.retry_after == 40
    clock.now += 39.9
    assert refusal_of(scheduler, "few").retry_after == 1, "never so short that clients spin"
    clock.now += 0.1
    scheduler.submit("few", 1, 1)


def test_retry_after_a_quota_of_tokens_is_exact_once_all_has_ended(clock, scheduler):
    for tokens in (20, 30):
        ticket = scheduler.submit("short", 10, 20)
        assert scheduler.admit(1) == [ticket]
        scheduler.charge(ticket, tokens - 10)
        scheduler.finish(ticket)
        clock.now += 10
    refusal = refusal_of(scheduler, "short", 5, 6)
    assert refusal.retry_after == 40
    scheduler.cancel(scheduler.submit("short", 5, 5))
    clock.now += 40
    scheduler.submit("short", 5, 6)


def test_tokens_that_are_not_computed_are_given_back(scheduler):
    first = scheduler.submit("short", 10, 50)
    refusal_of(scheduler, "short")
    scheduler.admit(1)
    scheduler.charge(first, 5)
    scheduler.finish(first)
    scheduler.submit("short", 10, 35)
    refusal_of(scheduler, "short")


def test_what_a_quota_never_allows_is_not_to_be_tried_again(scheduler):
    with pytest.raises(InvalidRequest, match="make 61 tokens; this key may use 60") as caught:
        scheduler.submit("short", 30, 31)
    assert caught.value.param == "max_tokens" and caught.value.retry_after is None


def test_a_request_is_accepted_whole_or_not_at_all(clock, scheduler):
    with pytest.raises(InvalidRequest, match="make 80 tokens; this key may use 60"):
        scheduler.submit_all("short", [(10, 10)] * 4)
    with pytest.raises(InvalidRequest, match="asks for 6 answers") as caught:
        scheduler.submit_all("free", [(1, 1)] * 6)
    assert caught.value.param == "n"
    scheduler.submit("free", 1, 1)
    with pytest.raises(TooManyRequests):
        scheduler.submit_all("free", [(1, 1)] * 5)
    assert scheduler.queued == 1
    scheduler.submit_all("short", [(10, 10)] * 3)  # nothing was charged for what was refused
    refusal_of(scheduler, "short")


def test_a_request_counts_once_whatever_its_answers(scheduler):
    for _ in range(4):
        for ticket in scheduler.submit_all("few", [(1, 1)] * 3):
            scheduler.cancel(ticket)
    refusal_of(scheduler, "few")


def test_retry_after_a_full_queue_follows_from_the_last_answers(clock, scheduler):
    running = [scheduler.submit("free", 1, 1) for _ in range(4)]
    scheduler.admit(4)
    clock.now += 80
    for ticket in running:
        scheduler.finish(ticket)
    for _ in range(4):
        scheduler.submit("free", 1, 1)
    scheduler.admit(4)
    for _ in range(5):
        scheduler.submit("free", 1, 1)
    assert refusal_of(scheduler, "free").retry_after == 20, "4 slots, answers of 80 seconds"
    for _ in range(3):
        scheduler.submit("few", 1, 1)
    refusal = refusal_of(scheduler, "few")
    assert refusal.what == "the queue is full." and refusal.retry_after == 20
    scheduler.cancel(running[0])
    scheduler.admit(0)
    assert refusal_of(scheduler, "free").retry_after == 20


def test_a_tenant_with_a_full_queue_waits_for_its_turn_among_tenants(clock, scheduler):
    first = scheduler.submit("free", 1, 1)
    scheduler.admit(1)
    clock.now += 10
    scheduler.finish(first)
    scheduler.submit("few", 1, 1)
    for _ in range(5):
        scheduler.submit("free", 1, 1)
    assert refusal_of(scheduler, "free").retry_after == 20, "one slot, two tenants, 10 seconds"


def test_of_tenants_that_are_served_alike_the_oldest_ticket_is_first(clock, scheduler):
    for tenant in ("z", "y", "x"):
        scheduler.cancel(scheduler.submit(tenant, 1, 1))
    tickets = []
    for tenant in ("x", "y", "z"):
        tickets.append(scheduler.submit(tenant, 1, 1))
        clock.now += 1
    assert scheduler.admit(3) == tickets


def test_a_deadline_ends_a_ticket_at_that_time(clock, scheduler):
    ticket = scheduler.submit("free", 1, 1, deadline=clock() + 2)
    clock.now += 1.9
    assert not scheduler.expired()
    clock.now = ticket.deadline
    assert scheduler.expired() == [ticket] and scheduler.admit(1) == []
    scheduler.cancel(ticket)
    assert scheduler.expired() == [] and scheduler.queued == 0


def test_only_a_running_ticket_is_charged_and_never_more_than_it_asked_for(scheduler):
    ticket = scheduler.submit("free", 1, 3)
    with pytest.raises(ValueError, match="1 token cannot be charged"):
        scheduler.charge(ticket, 1)
    with pytest.raises(ValueError, match="cannot be finished"):
        scheduler.finish(ticket)
    scheduler.admit(1)
    with pytest.raises(ValueError, match="4 tokens cannot be charged"):
        scheduler.charge(ticket, 4)
    scheduler.cancel(ticket)
    with pytest.raises(ValueError, match="cannot be charged"):
        scheduler.charge(ticket, 1)
