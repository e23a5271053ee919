"""Tickets that wait for more than a slot: their adapter is being loaded."""

import pytest

from lorica.serve.scheduler import Scheduler
from tests.serve.simulated import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock) -> Scheduler:
    return Scheduler(clock=clock, max_queued=9, max_queued_per_tenant=9, quotas={})


def test_a_ticket_that_is_not_ready_holds_up_nobody(scheduler):
    cold = scheduler.submit("a", 5, 5, is_ready=False)
    warm, other = scheduler.submit("a", 5, 5), scheduler.submit("b", 5, 5)
    assert set(scheduler.admit(3)) == {warm, other}
    assert not scheduler.has_ready
    scheduler.make_ready(cold)
    assert scheduler.has_ready
    assert scheduler.admit(3) == [cold]


def test_it_expires_and_is_cancelled_as_others_are(scheduler, clock):
    late = scheduler.submit("a", 5, 5, clock.now + 1, is_ready=False)
    gone = scheduler.submit("a", 5, 5, is_ready=False)
    clock.now += 2
    assert scheduler.expired() == [late]
    for ticket in (late, gone):
        scheduler.cancel(ticket)
    assert scheduler.queued == 0
    scheduler.make_ready(gone)  # its adapter came too late
    assert scheduler.admit(1) == []


def test_waiting_for_an_adapter_collects_no_credit(scheduler):
    """Once it is ready, a tenant does not get every slot for what it was not given meanwhile."""
    cold = scheduler.submit("cold", 1, 100, is_ready=False)
    for _ in range(5):
        scheduler.submit("busy", 1, 100)
        (ticket,) = scheduler.admit(1)
        scheduler.charge(ticket, 100)
        scheduler.finish(ticket)
    scheduler.make_ready(cold)
    for _ in range(5):
        scheduler.submit("cold", 1, 100)
    scheduler.submit("busy", 1, 100)
    order = []
    for _ in range(4):
        (ticket,) = scheduler.admit(1)
        order.append(ticket.tenant)
        scheduler.charge(ticket, 100)
        scheduler.finish(ticket)
    assert order[0] == "cold"
    assert "busy" in order[:3]
