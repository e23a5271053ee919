"""When a claim holds: by the 95 % interval of three paired differences, or by a bound.

A part of a claim is a figure with one value for each seed, signed so that above zero is what the
claim says. It holds if its whole interval, mean +- 4.303 s / sqrt 3 (Student's t with two degrees
of freedom, s the standard deviation), lies above zero, does not hold if it lies below, and is not
shown otherwise. A part with a bound, of figures that should be zero, holds if none is farther
from zero. A claim is what the worst of its parts is, of those that count.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SEEDS = (0, 1, 2)
STUDENT = 4.303  # 97.5 % point, two degrees of freedom
HOLDS, NOT_SHOWN, FAILS = "holds", "not shown", "does not hold"


@dataclass(frozen=True)
class Part:
    """One comparison.

    what: what is subtracted from what, in words. values: one for each seed; None where a run was
    stopped. bound: see above. counts: False for what stands beside the claim. form: of a value.
    """

    what: str
    values: Sequence[float | None]
    bound: float | None = None
    counts: bool = True
    form: str = "+.3f"

    @property
    def verdict(self) -> str:
        return judge(self.values) if self.bound is None else within(self.values, self.bound)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "values": list(self.values), "verdict": self.verdict}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of three values."""
    if len(values) != len(SEEDS):
        raise ValueError(f"{len(values)} values; the rule is for {len(SEEDS)} seeds.")
    half = STUDENT * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def judge(values: Sequence[float | None]) -> str:
    """Whether differences lie above zero. A run that was stopped shows nothing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return NOT_SHOWN
    low, high = interval(known)
    return HOLDS if low > 0 else FAILS if high < 0 else NOT_SHOWN


def within(values: Sequence[float | None], bound: float) -> str:
    """Whether no value is farther than `bound` from zero."""
    known = [value for value in values if value is not None]
    if any(abs(value) > bound for value in known):
        return FAILS
    return HOLDS if len(known) == len(values) and known else NOT_SHOWN


def together(parts: Sequence[dict[str, Any]]) -> str:
    """What a claim comes to, from its parts as plain data."""
    found = {part["verdict"] for part in parts if part["counts"]}
    return next((v for v in (FAILS, NOT_SHOWN, HOLDS) if v in found), NOT_SHOWN)
