"""The time that a study has taken and will take, and the budget that ends it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Work:
    """expected, done: seconds by what is known beforehand, of all units and of those that have
    ended. spent: seconds that these really took.
    """

    expected: float = 0.0
    done: float = 0.0
    spent: float = 0.0

    def note(self, expected: float, seconds: float) -> None:
        """A part has ended. expected: its share of `expected`; seconds: that it took."""
        self.done += expected
        self.spent += seconds

    def skip(self, expected: float) -> None:
        """A part had ended in an earlier sitting."""
        self.expected -= expected

    @property
    def left(self) -> float:
        """Seconds until the last part has ended, from what those so far took."""
        pace = self.spent / self.done if self.done else 1.0
        return max(self.expected - self.done, 0.0) * pace


@dataclass
class Clock:
    """training: passes, by the cost of a step of each side alone; what starts and evaluations take
    beside it shows in what the first ones took. scoring: of the final runs, by that of the base.
    budget: seconds of this sitting; None: no limit.
    """

    budget: float | None = None
    now: Callable[[], float] = time.monotonic
    training: Work = field(default_factory=Work)
    scoring: Work = field(default_factory=Work)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.now()

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent: no further job starts."""
        return self.budget is not None and self.now() - self.began >= self.budget

    @property
    def left(self) -> float:
        """Seconds until the last unit has ended."""
        return self.training.left + self.scoring.left


def in_words(seconds: float) -> str:
    """A duration for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
