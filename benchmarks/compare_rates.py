"""How often `lorica compare` errs, in studies whose truth is known: no model, drawn scores.

    python -m benchmarks.compare_rates                  the tables of docs/guides/statistics.md
    python -m benchmarks.compare_rates --samples 100    quickly

A loss of a row in a run is the difficulty of the row (log-normal, the same for all sides and
seeds), times what the side makes of this row and what this run makes of it (both with the tails of
a log-normal of sigma 1, either sign), plus an effect of the seed on the side, plus one of the seed
on all sides. In truth all sides are equal, unless a difference is planted.
"""

import argparse

import numpy as np

from lorica.compare.influence import Table
from lorica.compare.intervals import figure_of, variance_of
from lorica.compare.pairs import compare, difference, may_be_best, order
from lorica.compare.student import holm, two_sided_p

ROWS, SEEDS = 200, 3
SETTINGS = {
    "rows vary, seeds do not": {"seed": 0.0},
    "as measured on small models": {"seed": 0.015},
    "seeds vary as much as rows": {"seed": 0.04},
    "seeds vary more than rows": {"seed": 0.3},
    "noise of single rows in single runs": {"seed": 0.0, "side_row": 0.0, "single": 0.2},
    "one side with seeds 10 times as unsteady": {"seed": 0.02, "unsteady": 1},
    "the reference with seeds 10 times as unsteady": {"seed": 0.02, "unsteady": 0},
}
"""What differs between the studies. The effects of rows, 0.1 of a loss, are kept."""


def losses(generator, sides=2, rows=ROWS, seeds=SEEDS, *, row=0.3, side_row=0.1, seed=0.0,
           single=0.1, unsteady=None):  # fmt: skip
    """(sides, seeds, rows) losses of sides that are equal in truth.

    row: sigma of the difficulty of a row. side_row: noise of a row under a side, alike for all
    seeds. seed: standard deviation of the effect of a seed on a side. single: noise of one row in
    one run. unsteady: the side whose effect of seeds is 10 times as large.
    """
    difficulty = 2.0 * np.exp(generator.normal(0, row, rows))

    def heavy(*shape):
        return generator.choice([-1, 1], shape) * np.exp(generator.normal(0, 1, shape)) / np.e

    scale = np.full((sides, 1, 1), seed)
    if unsteady is not None:
        scale[unsteady] *= 10
    of_seed = generator.normal(0, 1, (sides, seeds, 1)) * scale
    common = generator.normal(0, 0.02, (1, seeds, 1))
    relative = 1 + side_row * heavy(sides, 1, rows) + single * heavy(sides, seeds, rows)
    return difficulty * relative + of_seed + common


def tables(values):
    """The tables of sides s0, s1 ... values: (sides, seeds, rows)."""
    seeds, rows = tuple(range(values.shape[1])), values.shape[2]
    return {
        f"s{k}": Table(seeds, "lower", v.mean(axis=1), v.T, float(rows), False, "positive")
        for k, v in enumerate(values)
    }


def false_alarms(samples, sides, setting, start=0):
    """Shares of studies without differences: of comparisons with p < 0.05, of studies with a
    verdict after Holm, of those that leave the side s1 out of the candidates for the best, and of
    those that would have a verdict by Welch's test."""
    generator = np.random.default_rng(start)
    single = after = left_out = by_welch = 0.0
    for _ in range(samples):
        study = tables(losses(generator, sides, **setting))
        compared = compare("loss", "s0", study, {})
        single += np.mean([c.p < 0.05 for c in compared if c.p is not None])
        after += any(c.verdict in ("better", "worse") for c in compared)
        left_out += "s1" not in may_be_best(study, order(study, [])[0], compared)
        p = [welch(difference(study[c.side], study["s0"])) for c in compared]
        by_welch += min(holm(p)) < 0.05
    return single / samples, after / samples, left_out / samples, by_welch / samples


def welch(pair):
    """The p-value of a difference with Satterthwaite's degrees of freedom, as is usual."""
    variance = variance_of(pair)
    total = variance.rows + variance.seeds
    parts = variance.rows**2 / variance.row_df + variance.seeds**2 / variance.seed_df
    return two_sided_p(pair.value / total**0.5, total**2 / parts)


def coverage(samples, setting, start=0):
    """Shares of intervals of a difference that contain the truth: rows, seeds, both, bootstrap."""
    generator = np.random.default_rng(start)
    held = np.zeros(4)
    for _ in range(samples):
        study = tables(losses(generator, 2, **setting))
        pair = difference(study["s1"], study["s0"])
        figure = figure_of(pair, variance_of(pair))
        intervals = (figure.over_rows, figure.over_seeds, figure.over_both)
        held[:3] += [interval.low <= 0 <= interval.high for interval in intervals]
        low, high = np.quantile(crossed_bootstrap(pair.rows, generator), (0.025, 0.975))
        held[3] += low <= 0 <= high
    return held / samples


def crossed_bootstrap(rows, generator, draws=400):
    """Means of tables of which both rows and seeds are drawn again: the usual way."""
    count, seeds = rows.shape
    times = generator.multinomial(count, np.full(count, 1 / count), draws) / count
    picked = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    return ((times @ rows) * picked).sum(axis=1)


def power(samples, sides, setting, start=0):
    """The difference that is planted, the one that studies say they show in 80 of 100, and the
    share of the studies that find it after Holm's correction."""
    generator = np.random.default_rng(start)
    sizes = []
    for _ in range(50):
        study = tables(losses(generator, sides, **setting))
        sizes += [c.detectable for c in compare("loss", "s0", study, {})]
    size, hits = float(np.mean(sizes)), 0
    for _ in range(samples):
        values = losses(generator, sides, **setting)
        values[1] -= size
        compared = {c.side: c.verdict for c in compare("loss", "s0", tables(values), {})}
        hits += compared["s1"] == "better"
    return size, hits / samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=400)
    samples = parser.parse_args().samples
    print(
        "| studies without a difference | A against A | one of 3 | one of 11 | best left out "
        "| one of 11 by Welch's test |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, setting in SETTINGS.items():
        single = false_alarms(samples, 2, setting)[0]
        four = false_alarms(samples // 2, 4, setting)
        twelve = false_alarms(samples // 4, 12, setting)
        shares = (single, four[1], twelve[1], max(four[2], twelve[2]), twelve[3])
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    print("\n| 95 % intervals that hold the truth | rows | seeds | both | crossed bootstrap |")
    print("|---|---:|---:|---:|---:|")
    for name, setting in SETTINGS.items():
        shares = " | ".join(f"{share:.1%}" for share in coverage(samples, setting))
        print(f"| {name} | {shares} |", flush=True)
    print("\n| a planted difference | of 2 sides: size | shown | of 4 sides: size | shown |")
    print("|---|---:|---:|---:|---:|")
    for name, setting in list(SETTINGS.items())[:5]:
        cells = []
        for sides in (2, 4):
            size, share = power(samples // 2, sides, setting)
            cells += [f"{size / 2.1:.1%}", f"{share:.1%}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
