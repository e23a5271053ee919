"""How much more data would show a difference, and which difference a study can show.

A difference is shown with 80 % power if it is as large as half the interval plus what chance takes
from it in four of five studies. More rows make the part of the variance smaller that comes from
rows, more seeds the part that comes from seeds; noise of one row in one run shrinks with both.
"""

from collections.abc import Callable
from dataclasses import replace

from lorica.compare.influence import MIN_ROWS, MIN_SEEDS
from lorica.compare.intervals import LEVEL, Variance

POWER = 0.8
NORMAL = 0.8416212335729143
"""A normal variable is below it with probability POWER."""
MOST_ROWS, MOST_SEEDS = 10_000_000, 1000
"""Beyond these, "no number of rows" is the plain answer."""


def detectable(variance: Variance, level: float = LEVEL) -> float:
    """The smallest true difference that such a study shows with 80 % power.

    level: two-sided, that of a single comparison (0.05 / comparisons under Holm's correction).
    """
    return variance.error * (variance.factor(level) + chance(variance))


def chance(variance: Variance) -> float:
    """Standard errors that Student's t takes from a difference in four of five studies, at most.

    Source: the first terms of the expansion that evaluation/stats.py has in full.
    """
    df = variance.seed_df if variance.seeds > variance.rows else variance.row_df
    return NORMAL + (NORMAL**3 + NORMAL) / (4 * df)


def shows(variance: Variance, difference: float, level: float) -> bool:
    """Whether a true difference is at least the detectable one."""
    return difference != 0 and abs(difference) >= detectable(variance, level)


def rows_needed(variance: Variance, difference: float, level: float = LEVEL) -> int | None:
    """The number of test rows, all together, that would show a difference with these seeds.

    None: no number of rows does, for the seeds alone vary too much.
    """
    return least(
        lambda rows: shows(with_rows(variance, rows), difference, level),
        MIN_ROWS,
        MOST_ROWS,
    )


def seeds_needed(variance: Variance, difference: float, level: float = LEVEL) -> int | None:
    """The number of seeds, all together, that would show a difference with these rows.

    None: no number of seeds does, for the rows alone vary too much.
    """
    return least(
        lambda seeds: shows(with_seeds(variance, seeds), difference, level),
        MIN_SEEDS,
        MOST_SEEDS,
    )


def with_rows(variance: Variance, rows: int) -> Variance:
    """The variance to expect with another number of rows."""
    ratio = variance.row_count / rows
    mixed = min(variance.mixed, variance.seeds)
    return replace(
        variance,
        rows=variance.rows * ratio,
        seeds=variance.seeds - mixed + mixed * ratio,
        mixed=variance.mixed * ratio,
        row_df=max((variance.row_df + 1) / ratio - 1, 1.0),
        row_count=rows,
    )


def with_seeds(variance: Variance, seeds: int) -> Variance:
    """The variance to expect with another number of seeds."""
    ratio = variance.seed_count / seeds
    mixed = min(variance.mixed, variance.rows)
    return replace(
        variance,
        rows=variance.rows - mixed + mixed * ratio,
        seeds=variance.seeds * ratio,
        mixed=variance.mixed * ratio,
        seed_df=variance.seed_df / (variance.seed_count - 1) * (seeds - 1),
        seed_count=seeds,
    )


def least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from low to high that is enough; None: none is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
