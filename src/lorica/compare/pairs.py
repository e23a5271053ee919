"""Sides compared with the reference, and with one another: which may be the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorica.compare.influence import MIN_ROWS, MIN_SEEDS, Table
from lorica.compare.intervals import (
    LEVEL,
    Figure,
    Variance,
    figure_of,
    pooled_variance,
    unsteady_sides,
    variance_of,
)
from lorica.compare.power import detectable, rows_needed, seeds_needed
from lorica.compare.student import holm

Verdict = Literal["better", "worse", "no difference shown", "failed", "no verdict"]

NOT_RUN = "it was not run"
"""Why a side has no result that is no failure of its own."""


@dataclass(frozen=True)
class Comparison:
    """One side against the reference, on one measure.

    difference: side minus reference, on the rows and the seeds that both have; None without a
    verdict. p: that there is none; p_holm: corrected for the number of comparisons of the measure;
    the verdict follows from p_holm < 0.05. rows_needed, seeds_needed: in all, to show the observed
    difference with 80 % power; None: no number does. detectable: the smallest true difference that
    this study shows with 80 % power. reason: why there is no verdict.
    """

    side: str
    reference: str
    measure: str
    verdict: Verdict
    seeds: tuple[int, ...] = ()
    rows: int = 0
    difference: Figure | None = None
    variance: Variance | None = None
    p: float | None = None
    p_holm: float | None = None
    rows_needed: int | None = None
    seeds_needed: int | None = None
    detectable: float | None = None
    reason: str = ""


def compare(
    measure: str, reference: str, tables: Mapping[str, Table], failed: Mapping[str, str]
) -> list[Comparison]:
    """Every other side against the reference, corrected for their number.

    tables: of the sides that have scores. failed: why the others have none.
    """
    names = [name for name in (*tables, *failed) if name != reference]
    single = [_one(measure, name, reference, tables, failed) for name in names]
    tested = [i for i, one in enumerate(single) if one.p is not None]
    corrected = holm([single[i].p or 0.0 for i in tested])
    for i, p_holm in zip(tested, corrected, strict=True):
        single[i] = _judged(single[i], p_holm, len(tested), tables[reference].better)
    return single


def _one(
    measure: str,
    name: str,
    reference: str,
    tables: Mapping[str, Table],
    failed: Mapping[str, str],
) -> Comparison:
    if name in failed:
        verdict: Verdict = "no verdict" if failed[name] == NOT_RUN else "failed"
        return Comparison(name, reference, measure, verdict, reason=failed[name])
    if reference in failed:
        reason = f"the reference {reference} has no result: {failed[reference]}"
        return Comparison(name, reference, measure, "no verdict", reason=reason)
    first, second = tables[name], tables[reference]
    if len(first.rows) != len(second.rows):
        reason = f"{len(first.rows)} test rows against {len(second.rows)}"
        return Comparison(name, reference, measure, "no verdict", reason=reason)
    pair = difference(first, second)
    variance = variance_of(pair, pooled_over(tables, name, reference))
    common = Comparison(name, reference, measure, "no verdict", pair.seeds, len(pair.rows))
    if variance is None:
        reason = f"{len(pair.rows)} rows and {len(pair.seeds)} common seeds; a verdict needs"
        return replace(common, reason=f"{reason} {MIN_ROWS} rows and {MIN_SEEDS} seeds")
    value = pair.value
    return replace(
        common, difference=figure_of(pair, variance), variance=variance, p=variance.p(value)
    )


def _judged(one: Comparison, p_holm: float, count: int, better: str) -> Comparison:
    """A comparison with its verdict, and with what would be needed for one."""
    assert one.difference is not None and one.variance is not None
    value, level = one.difference.value, LEVEL / count
    verdict: Verdict = "no difference shown"
    if p_holm < LEVEL:
        verdict = "better" if (value < 0) == (better == "lower") else "worse"
    return replace(
        one,
        p_holm=p_holm,
        verdict=verdict,
        rows_needed=rows_needed(one.variance, value, level),
        seeds_needed=seeds_needed(one.variance, value, level),
        detectable=detectable(one.variance, level),
    )


def difference(first: Table, second: Table) -> Table:
    """first - second on the seeds that both have."""
    common = [seed for seed in first.seeds if seed in second.seeds]
    return first.at(common).minus(second.at(common))


def pooled_over(tables: Mapping[str, Table], *pair: str) -> float | None:
    """The variance over seeds of a difference of two sides, as the sides have it in general.

    From the sides that have all seeds. An unsteady one is left out: a side that diverges now and
    then would take every verdict on the others. None: these are fewer than 3, or one of `pair` is
    unsteady.
    """
    unsteady = unsteady_sides(tables).keys()
    if not unsteady.isdisjoint(pair):
        return None
    steady = [table for name, table in tables.items() if name not in unsteady]
    most = max((len(table.seeds) for table in steady), default=0)
    whole = [table for table in steady if len(table.seeds) == most >= MIN_SEEDS]
    one = pooled_variance([t for t in whole if t.seeds == whole[0].seeds])
    return None if one is None else 2 * one


def may_be_best(
    tables: Mapping[str, Table], first: str, comparisons: Sequence[Comparison]
) -> list[str]:
    """The sides that no other is shown to beat: the best is among them with 95 % confidence.

    Each side is taken as the reference in turn, with Holm's correction: if it is the best, no
    other is called better. It need not be known beforehand which one it is.
    first: the side with the best mean, always among them. comparisons: with the study's reference;
    where one of them has a verdict, the set agrees with it.
    Source: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the
        best", 1984, Annals of Statistics 12:1136-1144; with Holm's correction for Dunnett's.
    """
    verdicts = {comparison.side: comparison.verdict for comparison in comparisons}
    reference = comparisons[0].reference if comparisons else ""
    best = []
    for name in tables:
        beaten = verdicts.get(name) == "worse" or _beaten(name, tables)
        if first == reference and verdicts.get(name) == "no difference shown":
            beaten = False
        if name == first or not beaten:
            best.append(name)
    return best


def _beaten(name: str, tables: Mapping[str, Table]) -> bool:
    """Whether another side is shown to be better."""
    p, better = [], []
    for other in tables:
        if other == name or len(tables[other].rows) != len(tables[name].rows):
            continue
        pair = difference(tables[other], tables[name])
        variance = variance_of(pair, pooled_over(tables, name, other))
        if variance is not None:
            p.append(variance.p(pair.value))
            better.append((pair.value < 0) == (pair.better == "lower"))
    return any(b and q < LEVEL for b, q in zip(better, holm(p), strict=True))


def order(tables: Mapping[str, Table], failed: Sequence[str]) -> list[str]:
    """The sides from best to worst by their means; those that failed come last."""
    sign = {name: -1 if table.better == "higher" else 1 for name, table in tables.items()}
    return [*sorted(tables, key=lambda name: sign[name] * tables[name].value), *failed]
