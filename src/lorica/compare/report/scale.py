"""Axes: numbers to places, and round numbers to label them with."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorica.compare.report.numbers import compact, written

CHARACTER = 6.6
"""Mean width of a character of a label, in units of a drawing."""
LOGARITHMIC_FROM = 8.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Scale:
    """low, high: the numbers at the places `start` and `end`. ticks: with their labels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        """The place of `value`, which may lie outside."""
        low, high, value = (self._linear(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _linear(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log else value


def scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    is_log: bool | None = None,
    include: Sequence[float] = (),
    label_size: float | None = None,
) -> Scale:
    """An axis for `values`. is_log: None: where they spread over LOGARITHMIC_FROM.

    include: numbers that are on the axis, if it is linear. label_size: room that a label takes;
    None: as much as its characters.
    """
    numbers = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    if is_log is None:
        is_log = low > 0 and high / low >= LOGARITHMIC_FROM
    is_log = is_log and low > 0
    if is_log:
        margin = max(1.05, (high / low) ** 0.06)
        low, high = low / margin, high * margin
        ticks = _log_ticks(low, high)
    else:
        low, high = min(low, *include, high), max(high, *include, low)
        margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-6)
        low, high = low - margin, high + margin
        ticks = _linear_ticks(low, high)
    axis = Scale(low, high, start, end, is_log, ())
    return Scale(low, high, start, end, is_log, _spaced(axis, ticks, label_size))


def _linear_ticks(low: float, high: float, count: int = 6) -> list[tuple[float, str]]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if rough <= m * power * 1.001)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if decimals > 4 or abs(last * step) >= 1e6:
        return [(n * step, compact(n * step)) for n in range(first, last + 1)]
    return [(n * step, written(n * step, decimals)) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    decades = math.log10(high / low)
    factors = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.9 else (1, 1.5, 2, 3, 5, 7)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(len(powers) / 8)) if len(factors) == 1 else 1
    ticks = [f * 10.0**p for p in powers if p % every == 0 for f in factors]
    return [(t, compact(t)) for t in ticks if low <= t <= high]


def _spaced(
    axis: Scale, ticks: Sequence[tuple[float, str]], size: float | None
) -> tuple[tuple[float, str], ...]:
    """The ticks whose labels do not touch the one before; powers of ten go first."""
    chosen: list[tuple[float, str]] = []

    def is_free(tick: tuple[float, str]) -> bool:
        return all(
            abs(axis(tick[0]) - axis(other[0]))
            >= (size or (len(tick[1]) + len(other[1])) / 2 * CHARACTER + 8)
            for other in chosen
        )

    def rank(tick: tuple[float, str]) -> tuple[bool, float]:
        return (not tick[1].lstrip("0.,").startswith("1") if axis.is_log else False, tick[0])

    for tick in sorted(ticks, key=rank):
        if is_free(tick):
            chosen.append(tick)
    return tuple(sorted(chosen))
