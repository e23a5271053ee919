"""The sliding minute, beside a list of all amounts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.serve.quota import GRAIN, MINUTE, SlidingMinute

law = settings(max_examples=200, deadline=None, derandomize=True, database=None)
pauses = st.sampled_from([0.0, 0.5, 0.75, 7.0, 59.5, 60.0])
additions = st.lists(st.tuples(pauses, st.integers(1, 9)), min_size=1, max_size=12)
"""(seconds since the one before, amount); the seconds are exact in binary."""


def filled(steps: list[tuple[float, int]]) -> tuple[SlidingMinute, list[tuple[float, int]], float]:
    window, all_amounts, now = SlidingMinute(), [], 0.0
    for pause, amount in steps:
        now += pause
        window.add(now, amount)
        all_amounts.append((now, amount))
    return window, all_amounts, now


@law
@given(additions, pauses)
def test_an_amount_counts_for_a_minute_and_at_most_a_second_longer(steps, pause):
    window, all_amounts, now = filled(steps)
    now += pause
    least = sum(amount for time, amount in all_amounts if time > now - MINUTE)
    most = sum(amount for time, amount in all_amounts if time > now - MINUTE - GRAIN)
    assert least <= window.total(now) <= most
    assert window.total(now + MINUTE) == 0


@law
@given(additions, st.integers(0, 40))
def test_room_comes_when_it_is_promised_and_not_before(steps, most):
    window, _, now = filled(steps)
    seconds = window.seconds_until(now, most)
    assert (seconds == 0) == (window.total(now) <= most)
    if seconds:
        assert window.total(now + seconds - 0.125) > most
    assert window.total(now + seconds) <= most


def test_a_window_stays_small():
    window = SlidingMinute()
    for step in range(100_000):
        window.add(step / 500, 1)
        window.total(step / 500)
    assert len(window._entries) <= 62
    assert 30_000 <= window.total(99_999 / 500) <= 30_500
