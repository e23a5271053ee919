"""How long one request waits beside 200 of another tenant, on a simulated clock.

    python -m benchmarks.serve.fairness

The real scheduler, and a decoder that is only counted: a step gives each running row one token.
Waiting is in steps, so that the figures are those of no machine. A request arrives after each of
100 different numbers of steps. The contrast is first come, first served: the same requests, all of
one tenant. Alone a request waits for no slot.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from lorica.serve.scheduler import Scheduler, Ticket

MANY, ARRIVALS = 200, 100


@dataclass
class Steps:
    """A clock that counts steps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Wait:
    """Steps until it has a slot, and until its answer is complete."""

    slot: float
    answer: float


def simulate(slots: int, longest: int, *, arrival: int, tenant: str) -> Wait:
    """One request of `tenant` comes `arrival` steps after the 200 of the tenant "many".

    Answers have between a quarter of `longest` and `longest` tokens; the one has half of it.
    """
    draw, clock = random.Random(arrival), Steps()
    scheduler = Scheduler(
        clock=clock, max_queued=MANY + 1, max_queued_per_tenant=MANY + 1, quotas={}
    )
    for _ in range(MANY):
        length = draw.randint(longest // 4, longest)
        scheduler.submit("many", draw.randint(8, 256), length)
    running: list[Ticket] = []
    single = None
    while single is None or single.state != "finished":
        if clock.now == arrival:
            single = scheduler.submit(tenant, 64, longest // 2)
        running += scheduler.admit(slots - len(running))
        clock.now += 1
        for ticket in running:
            scheduler.charge(ticket, 1)
            if ticket.computed == ticket.max_new_tokens:
                scheduler.finish(ticket)
        running = [ticket for ticket in running if ticket.state == "running"]
    assert single.started is not None
    return Wait(single.started - single.submitted, clock.now - single.submitted)


def rows() -> Iterator[tuple[int, int, str, list[Wait]]]:
    """(slots, longest answer, who is first, waits) of every setting."""
    for slots, longest in ((4, 64), (16, 64), (16, 256)):
        for name, tenant in (("fair", "single"), ("first come", "many")):
            arrivals = range(1, 4 * ARRIVALS, 4)
            waits = [simulate(slots, longest, arrival=a, tenant=tenant) for a in arrivals]
            yield slots, longest, name, waits


def main() -> None:
    print(f"one request beside {MANY} of another tenant; steps of the decoder, simulated")
    print(f"{'':32}{'until it has a slot':>24}{'until it is complete':>30}")
    print(f"{'slots':>5}{'answers':>10}  {'scheduling':15}{'median':>12}{'worst':>12}", end="")
    print(f"{'median':>10}{'worst':>10}{'alone':>10}")
    for slots, longest, name, waits in rows():
        slot, answer = [w.slot for w in waits], [w.answer for w in waits]
        print(f"{slots:5}{f'{longest // 4}-{longest}':>10}  {name:15}", end="")
        print(f"{median(slot):12.0f}{max(slot):12.0f}", end="")
        print(f"{median(answer):10.0f}{max(answer):10.0f}{longest // 2:10}")


if __name__ == "__main__":
    main()
