"""Studies whose truth is known: rows and seeds drawn from a model, no training.

The score of a row in a run is the row's own difficulty times what the side makes of it, with noise
of the row under this side, of the seed, and of this row in this run:

    log-normal rows, heavy-tailed; rows alike across seeds and sides, as in a real test set.
"""

import numpy as np

from lorica.compare.results import Cost, Final, MeasureScores, SideResult, StudyResult, Trial

COST = Cost(0.01, 1000.0, 2**28, 2**14, 5_000, 260_000)


def scores(values, better="lower", weights=()):
    """The scores of one run from its rows; the value is their weighted mean."""
    rows = [float(value) for value in values]
    value = float(np.average(values, weights=weights if len(weights) else None))
    return MeasureScores(value, better, rows, [float(w) for w in weights])


def side(name, runs, *, measure="loss", cost=COST, errors=None, rank=None):
    """A side. runs: by seed, MeasureScores or a mapping of measures; errors: by seed."""
    finals = [
        Final(seed, 1e-3, run if isinstance(run, dict) else {measure: run})
        for seed, run in runs.items()
    ]
    finals += [Final(seed, 1e-3, {}, error=error) for seed, error in (errors or {}).items()]
    return SideResult(name, "lora", rank, "method: lora\n", [Trial(1e-3, 10, 2.0)], finals, cost)


def study(sides, *, goal="loss", reference=None, base=None):
    return StudyResult(
        "study", {}, goal, reference or sides[0].name, sides, base or {}, {"lorica": "0"}, "here"
    )


def losses(generator, sides=2, rows=200, seeds=3, *, row=0.3, side_row=0.1, seed=0.0, single=0.1):
    """(sides, seeds, rows) losses of sides that are equal in truth.

    row: sigma of the log-normal difficulty of a row. side_row: of the noise of a row under a side,
    the same for all seeds (heavy-tailed). seed: the standard deviation of the effect of a seed on
    a side: a number, or one for each side. single: noise of one row in one run.
    """
    difficulty = 2.0 * np.exp(generator.normal(0, row, rows))

    def heavy(*shape):  # symmetric, with the tails of a log-normal of sigma 1
        return generator.choice([-1, 1], shape) * np.exp(generator.normal(0, 1, shape)) / np.e

    of_side = side_row * heavy(sides, 1, rows)
    of_seed = generator.normal(0, 1, (sides, seeds, 1)) * np.reshape(seed, (-1, 1, 1))
    common = generator.normal(0, 0.02, (1, seeds, 1))  # what a seed does to all sides
    alone = single * heavy(sides, seeds, rows)
    return difficulty * (1 + of_side + alone) + of_seed + common
