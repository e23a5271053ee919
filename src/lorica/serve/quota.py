"""Quotas of a tenant, and the sliding minute in which requests and tokens are counted."""

from collections import deque
from dataclasses import dataclass

from lorica.errors import counted
from lorica.serve.refusals import InvalidRequest, TooManyRequests

MINUTE = 60.0
"""Length of the window, in seconds."""
SHORTEST_RETRY = 1.0
"""Seconds of the shortest retry_after."""
GRAIN = 1.0
"""Seconds within which amounts share an entry, so that a window has at most about 61 of them."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What one tenant may use; None: no limit.

    requests_per_minute: requests that are accepted, each once, however many answers it has.
    tokens_per_minute: tokens that are computed, of prompts and of answers. streams: answers that
    are written at the same time; more of them wait in the queue. All hold in every window of 60
    seconds, wherever it begins.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None


class SlidingMinute:
    """The sum of the amounts of the last 60 seconds.

    Amounts within a second share an entry that has the time of the newest. So an amount may count
    up to a second too long, and never too short.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[float, float, int]] = deque()  # first time, last time, amount
        self._total = 0

    def add(self, now: float, amount: int) -> None:
        """Count `amount` at the time `now`, which is never before that of an earlier call."""
        self._total += amount
        if self._entries and now - self._entries[-1][0] < GRAIN:
            first, _, before = self._entries.pop()
            self._entries.append((first, now, before + amount))
        else:
            self._entries.append((now, now, amount))

    def total(self, now: float) -> int:
        """The sum of what was added after `now` - 60 seconds. Drops older entries."""
        while self._entries and self._entries[0][1] + MINUTE <= now:
            self._total -= self._entries.popleft()[2]
        return self._total

    def seconds_until(self, now: float, most: int) -> float:
        """Seconds after which the sum is at most `most`, if nothing is added."""
        total, wait = self.total(now), 0.0
        for _, last, amount in self._entries:
            if total <= most:
                break
            total, wait = total - amount, last + MINUTE - now
        return wait


def check_quota(
    quota: Quota,
    requests: SlidingMinute,
    computed: SlidingMinute,
    reserved: int,
    tokens: int,
    now: float,
) -> None:
    """Check a request for `tokens` tokens against what a tenant has used.

    requests: that it sent. computed: tokens, of prompts and answers. reserved: tokens that its
    answers may still compute. Raises: TooManyRequests, InvalidRequest.
    """
    if (most := quota.requests_per_minute) is not None and requests.total(now) >= most:
        raise TooManyRequests(
            f"this key may send {counted(most, 'request')} per minute, and has.",
            fix="wait, or ask the server's owner for more",
            retry_after=max(SHORTEST_RETRY, requests.seconds_until(now, most - 1)),
        )
    if (most := quota.tokens_per_minute) is None:
        return
    if tokens > most:
        raise InvalidRequest(
            f"prompts and answers make {tokens:,} tokens; this key may use {most:,} per minute.",
            fix="shorten the prompt, or set a smaller max_tokens or n",
            param="max_tokens",
        )
    if computed.total(now) + reserved + tokens > most:
        room = max(0, most - reserved - tokens)
        raise TooManyRequests(
            f"this key may use {most:,} tokens per minute; {tokens:,} more would exceed that.",
            fix="wait, or set a smaller max_tokens",
            retry_after=max(SHORTEST_RETRY, computed.seconds_until(now, room)),
        )
