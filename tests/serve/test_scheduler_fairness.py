"""Laws of fairness, on a simulated clock, and faults that they catch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.serve.quota import Quota
from lorica.serve.scheduler import INPUT_WEIGHT, OUTPUT_WEIGHT, Scheduler
from tests.serve.simulated import STEP, SimulatedServer

law = settings(max_examples=60, deadline=None, derandomize=True, database=None)
LONGEST_PROMPT, LONGEST_ANSWER = 40, 20
sizes = st.tuples(st.integers(1, LONGEST_PROMPT), st.integers(1, LONGEST_ANSWER))
workloads = st.lists(sizes, min_size=1, max_size=6)


def bound(slots: int) -> int:
    """U of the module's docstring."""
    return INPUT_WEIGHT * LONGEST_PROMPT + OUTPUT_WEIGHT * slots * LONGEST_ANSWER


def gaps(
    workload_by_tenant: dict[str, list[tuple[int, int]]],
    *,
    slots: int,
    steps: int = 400,
    kind: type[Scheduler] = Scheduler,
    quotas: dict[str, Quota] | None = None,
    reserved: int = 0,
) -> list[int]:
    """Served weighted tokens of "a" less those of "b" after each step; all are backlogged."""
    server = SimulatedServer(slots, kind=kind, quotas=quotas, reserved=reserved)
    counts = dict.fromkeys(workload_by_tenant, 0)
    differences = []
    for _ in range(steps):
        for tenant, workload in workload_by_tenant.items():
            waiting = [t for t in server.lengths if t.tenant == tenant and t.state == "queued"]
            for _ in range(slots + 1 - len(waiting)):
                server.submit(tenant, *workload[counts[tenant] % len(workload)])
                counts[tenant] += 1
        server.lengths = {t: n for t, n in server.lengths.items() if t.state != "finished"}
        server.step()
        differences.append(server.served["a"] - server.served["b"])
    return differences


@law
@given(workloads, workloads, workloads, st.integers(1, 4))
def test_backlogged_tenants_are_served_alike_at_all_times(a, b, c, slots):
    """In no interval does the difference of two of three tenants change by more than 2 U."""
    differences = gaps({"a": a, "b": b, "c": c}, slots=slots)
    assert max(differences) - min(differences) <= 2 * bound(slots)


class LiftsNoLimited(Scheduler):
    """The fault: who waits for a stream of its own collects credit."""

    def _end(self, ticket, state):
        self._lift, lift = (lambda account: None), self._lift
        super()._end(ticket, state)
        self._lift = lift


@pytest.mark.parametrize("kind", [Scheduler, LiftsNoLimited])
def test_a_tenant_at_its_limit_of_streams_collects_no_credit(kind):
    """Tenant "a" may use one of three slots while "b" has the others; then more tenants come."""
    server = SimulatedServer(3, kind=kind, quotas={"a": Quota(streams=1)})
    for tenant in ("a", "b"):
        for _ in range(900):
            server.submit(tenant, 10, 10)
    for _ in range(1000):
        server.step()
        assert sum(ticket.tenant == "a" for ticket in server.active) <= 1
    before = server.served["a"]
    for tenant in "cdefgh":
        for _ in range(400):
            server.submit(tenant, 10, 10)
    for _ in range(1000):
        server.step()
    is_ahead = server.served["a"] - before - server.served["c"] > 2 * bound(3)
    assert is_ahead == (kind is LiftsNoLimited)


class CountsRequests(Scheduler):
    """The fault: each request costs the same, however long it is."""

    def _count(self, account, *, prompt, answer):
        before = account.counter
        super()._count(account, prompt=prompt, answer=answer)
        account.counter = before + (prompt > 0)


def test_counting_requests_in_place_of_tokens_breaks_the_law():
    long, short = [(LONGEST_PROMPT, LONGEST_ANSWER)], [(1, 1)]
    fair, unfair = (
        gaps({"a": long, "b": short}, slots=2, steps=1500, kind=kind)
        for kind in (Scheduler, CountsRequests)
    )
    assert max(fair) - min(fair) <= 2 * bound(2)
    assert max(unfair) - min(unfair) > 2 * bound(2)


class NeverLifts(Scheduler):
    """The fault: who was away collects credit."""

    def _lift(self, account):
        pass


@pytest.mark.parametrize("kind", [Scheduler, NeverLifts])
def test_who_returns_from_idle_has_no_credit(kind):
    """Tenant "b" used nothing while "a" was served for long. Then both send without end."""
    server = SimulatedServer(2, kind=kind)
    server.submit("b", 1, 1)
    for _ in range(300):
        server.submit("a", 20, 10)
    while server.scheduler.queued > 50:
        server.step()
    before = server.served["a"]
    for _ in range(200):
        server.submit("b", 20, 10)
    for _ in range(200):
        server.step()
    has_waited_too_long = server.served["b"] - (server.served["a"] - before) > 2 * bound(2)
    assert has_waited_too_long == (kind is NeverLifts)


@law
@given(workloads, sizes, st.integers(1, 4), st.integers(0, 120))
def test_one_request_beside_200_waits_for_one_slot(many, single, slots, steps):
    server = SimulatedServer(slots)
    for number in range(200):
        server.submit("many", *many[number % len(many)])
    for _ in range(steps):
        server.step()
    ticket = server.submit("single", *single)
    freed = server.freed
    while ticket.state == "queued":
        is_its_turn = server.freed > freed
        server.step()
        assert ticket.state != "queued" or not is_its_turn


@law
@given(workloads, st.tuples(st.integers(1, LONGEST_PROMPT), st.integers(1, LONGEST_ANSWER)))
def test_one_request_beside_200_has_a_reserved_slot_at_once(many, single):
    server = SimulatedServer(5, reserved=1)
    for number in range(200):
        server.submit("many", *many[number % len(many)])
    for _ in range(7):
        server.step()
        assert sum(t.tenant == "many" for t in server.active) <= 4
    ticket = server.submit("single", *single)
    server.step()
    assert ticket.state != "queued"


@law
@given(workloads, workloads, workloads, st.integers(2, 4))
def test_reserved_slots_keep_the_bound(a, b, c, slots):
    differences = gaps({"a": a, "b": b, "c": c}, slots=slots, reserved=1)
    assert max(differences) - min(differences) <= 2 * bound(slots)


def test_first_come_first_served_would_let_one_request_wait_for_all_others():
    """The contrast: the same requests, all of one tenant."""
    waits = {}
    for tenant in ("single", "many"):
        server = SimulatedServer(4)
        for _ in range(200):
            server.submit("many", 10, 10)
        for _ in range(3):
            server.step()
        ticket = server.submit(tenant, 10, 10)
        for _ in range(1000):
            server.step()
        assert ticket.started
        waits[tenant] = ticket.started - ticket.submitted
    assert waits["single"] <= 10 * STEP < 400 * STEP < waits["many"]


@law
@given(workloads, workloads, st.integers(1, 3), st.integers(1, 100))
def test_nobody_starves(others, history, slots, steps):
    """A ticket waits while each other tenant gets at most 2 U, and what its own tenant asked for
    before it."""
    server = SimulatedServer(slots)
    tenants = ("a", "b", "c")
    for number in range(steps):
        for size in history if number < 10 else []:
            server.submit("patient", *size)
        server.step()
    ticket = server.submit("patient", 1, 1)
    own = sum(
        INPUT_WEIGHT * t.prompt_tokens + OUTPUT_WEIGHT * t.max_new_tokens for t in server.lengths
    )
    count = 0
    while ticket.state == "queued":
        for tenant in tenants:
            server.submit(tenant, *others[count % len(others)])
            count += 1
        server.step()
        for tenant in tenants:
            assert server.served[tenant] <= 2 * bound(slots) + own
