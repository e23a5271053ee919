"""Studies of scores that are given, without any training."""

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
