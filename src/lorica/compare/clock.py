"""The time that a study has taken and will take, and the budget that ends it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Clock:
    """expected, done: seconds of training by the cost of each side, of all units and of those that
    have ended. budget: seconds of this sitting; None: no limit. spent: seconds of jobs that ended.
    """

    budget: float | None = None
    now: Callable[[], float] = time.monotonic
    expected: float = 0.0
    done: float = 0.0
    spent: float = 0.0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.now()

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent: no further job starts."""
        return self.budget is not None and self.now() - self.began >= self.budget

    def note(self, expected: float, seconds: float) -> None:
        """A job has ended. expected: its share of `expected`; seconds: that it took."""
        self.done += expected
        self.spent += seconds

    def skip(self, expected: float) -> None:
        """A job had ended in an earlier sitting."""
        self.expected -= expected

    @property
    def left(self) -> float:
        """Seconds until the last unit has ended, from what the jobs so far took."""
        pace = self.spent / self.done if self.done else 1.0
        return max(self.expected - self.done, 0.0) * pace


def in_words(seconds: float) -> str:
    """A duration for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
