"""The verdict of a study in three sentences."""

from collections.abc import Mapping, Sequence

from lorica.compare.influence import Table
from lorica.compare.intervals import LEVEL, figure_of, variance_of
from lorica.compare.pairs import Comparison, difference, pooled_over
from lorica.compare.power import rows_needed, seeds_needed
from lorica.compare.results import Cost, SideResult, StudyResult
from lorica.errors import listed

NAMES = 6
"""Names in a list; of more, the number is given."""
MOST_SEEDS = 30
"""More seeds than these are not advised."""


def sentences(
    result: StudyResult,
    goal: Mapping[str, Table],
    ranking: Sequence[str],
    best: Sequence[str],
    comparisons: Sequence[Comparison],
    forgotten: Mapping[str, Table],
) -> tuple[str, str, str]:
    """Which side is best; what cannot be distinguished; what it costs, what it forgot, and what
    would show more."""
    if not goal:
        return (
            f"No side has a result for {result.goal}.",
            "Nothing can be compared.",
            "The notices say why.",
        )
    sides = {side.name: side for side in result.sides}
    first, costs = ranking[0], _costs(sides[ranking[0]], sides[result.reference])
    failed = [name for name in ranking if name not in goal]
    return (
        _which(result, goal, first, best, failed, sides[first]),
        _apart(result.reference, goal, first, best, comparisons),
        f"{costs}; {_forgot(first, forgotten)}{_more(goal, ranking, best, comparisons)}.",
    )


def _which(
    result: StudyResult,
    goal: Mapping[str, Table],
    first: str,
    best: Sequence[str],
    failed: list[str],
    side: SideResult,
) -> str:
    table = goal[first]
    over = figure_of(table, variance_of(table)).over_both
    interval = f" (95 % interval {number(over.low)} to {number(over.high)})"
    known = interval if over.low == over.low else ""
    left_out = [str(final.seed) for final in side.finals if final.seed not in table.seeds]
    if left_out:
        known += f", without {'seed' if len(left_out) == 1 else 'seeds'} {', '.join(left_out)}"
        known += ", which failed"
    extreme = "highest" if table.better == "higher" else "lowest"
    means = f"{first} has the {extreme} mean"
    figure = f"{result.goal}, {number(over.value)}{known}"
    end = f"; {listed(failed, NAMES)} came to no result" if failed else ""
    if len(goal) == 1:
        return f"{first} alone has a result: {figure}{end}."
    equal = _equal_to(first, goal)
    if len(equal) == len(goal) - 1:
        each = f"the mean of each of the {len(goal)} is {number(over.value)}"
        return f"No side differs in {result.goal}: {each}{end}."
    if equal:
        means = f"{listed([first, *equal], NAMES)} share the {extreme} mean"
    if len(best) == 1:
        return f"{first} is best with 95 % confidence: {means} {figure}{end}."
    return f"{means} {figure}, but {'none is' if equal else 'is not'} shown to be the best{end}."


def _equal_to(first: str, goal: Mapping[str, Table]) -> list[str]:
    """The other sides with exactly the mean of the first one."""
    return [n for n, table in goal.items() if n != first and table.value == goal[first].value]


def _apart(
    reference: str,
    goal: Mapping[str, Table],
    first: str,
    best: Sequence[str],
    comparisons: Sequence[Comparison],
) -> str:
    parts = []
    others = [name for name in best if name != first]
    if others and not _equal_to(first, goal):
        parts.append(f"it cannot be distinguished from {listed(others, NAMES)}")
    by_verdict: dict[str, list[str]] = {}
    for comparison in comparisons:
        by_verdict.setdefault(comparison.verdict, []).append(comparison.side)
    for verdict, words in (
        ("better", "better than"),
        ("worse", "worse than"),
        ("no difference shown", "not shown to differ from"),
        ("no verdict", "without a verdict against"),
    ):
        if names := by_verdict.get(verdict):
            be = "is" if len(names) == 1 else "are"
            parts.append(f"{listed(names, NAMES)} {be} {words} the reference {reference}")
    if not parts:
        return f"{first} stands alone: there is nothing to compare it with."
    return (
        f"{parts[0].replace('it', 'It', 1) if parts[0].startswith('it ') else parts[0]}"
        + "".join(f"; {part}" for part in parts[1:])
        + "."
    )


def _costs(side: SideResult, reference: SideResult) -> str:
    if side.cost is None:
        return f"The cost of {side.name} was not measured"
    text = f"{side.name} takes {cost_words(side.cost)}"
    if side.name != reference.name and reference.cost is not None:
        text += f", {reference.name} {cost_words(reference.cost)}"
    return text


def _forgot(first: str, forgotten: Mapping[str, Table]) -> str:
    """What the best side forgot, and the range of the others; "" if it was not measured."""
    if first not in forgotten:
        return ""
    value = forgotten[first].value
    change = f"rose by {number(value)}" if value >= 0 else f"fell by {number(-value)}"
    text = f'the loss of {first} on the rows of "before" {change}'
    if others := [table.value for name, table in forgotten.items() if name != first]:
        low, high = number(min(others)), number(max(others))
        text += f" (of the others: {low if low == high else f'{low} to {high}'})"
    return f"{text}; "


def _more(
    goal: Mapping[str, Table],
    ranking: Sequence[str],
    best: Sequence[str],
    comparisons: Sequence[Comparison],
) -> str:
    """What would distinguish the best side from the next, or else from the reference."""
    first, level = ranking[0], LEVEL / max(len(goal) - 1, 1)
    pairs = [(first, name) for name in ranking if name in best and name != first]
    pairs += [(c.reference, c.side) for c in comparisons if c.verdict == "no difference shown"]
    if not pairs:
        return "more test rows and seeds make the intervals narrower"
    against, rival = pairs[0]
    pair = difference(goal[rival], goal[against])
    variance = variance_of(pair, pooled_over(goal, rival, against))
    if pair.value == 0:
        return f"{against} and {rival} are equal here; another measure may tell them apart"
    if variance is None:
        return f"to distinguish {against} from {rival} takes more seeds or test rows"
    ways = []
    if rows := rows_needed(variance, pair.value, level):
        ways.append(f"{rows:,} test rows (this study has {variance.row_count:,})")
    seeds = seeds_needed(variance, pair.value, level)
    if seeds and seeds <= MOST_SEEDS:
        ways.append(f"{seeds} seeds (it has {variance.seed_count})")
    sides = f"{against} from {rival} (a difference of {number(abs(pair.value))})"
    if not ways:
        return (
            f"neither more test rows alone nor up to {MOST_SEEDS} seeds would distinguish {sides}"
        )
    return f"to distinguish {sides} takes {' or '.join(ways)}"


def cost_words(cost: Cost) -> str:
    step = cost.seconds_per_step
    parts = [f"{step:,.2g} s a step" if step >= 1 else f"{1e3 * step:,.3g} ms a step"]
    if cost.peak_memory_bytes is not None:
        parts.append(f"{cost.peak_memory_bytes / 2**20:,.0f} MiB")
    return ", ".join([*parts, f"a file of {cost.adapter_bytes / 1024:,.0f} KiB"])


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
