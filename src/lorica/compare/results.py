"""The results of a study, as its statistics and its report read them.

A side is one of the things compared: a method with its settings at one rank. A unit is one training
of a side: it searches a learning rate, is a final run with one seed, or measures the cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class MeasureScores:
    """One measure of one final run on the test rows.

    value: over all rows. rows: one number for each test row, in their order; `value` is the mean of
    `rows` weighted by `weights` (label tokens for a loss; empty: rows count alike), or, for a
    corpus measure (BLEU), what `statistics` combine to: then rows are the scores of single rows,
    and statistics has one list of sufficient statistics for each row.
    """

    value: float
    better: Better
    rows: Sequence[float]
    weights: Sequence[float] = ()
    statistics: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Cost:
    """What a side costs, measured in a process of its own. None: the platform does not tell."""

    seconds_per_step: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    adapter_bytes: int
    trained_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class Trial:
    """A run of the rate search. loss: on the validation rows after `steps`; None: it diverged."""

    learning_rate: float
    steps: int
    loss: float | None


@dataclass(frozen=True)
class Final:
    """A run with one seed at the chosen rate. error: why it ended early; then scores are empty.

    curve: (step, training loss). validation: (step, loss). forgotten: loss on the "before" rows
    after training minus before it. samples: (prompt, reference, answer) of a few test rows, the
    same rows for every side.
    """

    seed: int
    learning_rate: float
    scores: Mapping[str, MeasureScores]
    curve: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float]] = ()
    before_scores: MeasureScores | None = None
    forgotten: float | None = None
    samples: Sequence[tuple[str, str, str]] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    notices: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True)
class SideResult:
    """recipe: the YAML of its training at the chosen rate, ready to copy. rank: None: no rank."""

    name: str
    method: str
    rank: int | None
    recipe: str
    trials: Sequence[Trial]
    finals: Sequence[Final]
    cost: Cost | None


@dataclass(frozen=True)
class StudyResult:
    """A whole study. study: its settings, resolved. base: scores of the base without adapter on the
    same test rows, by measure. missing: units that were not run (budget), in words."""

    name: str
    study: Mapping[str, Any]
    goal: str
    reference: str
    sides: Sequence[SideResult]
    base: Mapping[str, MeasureScores]
    versions: Mapping[str, str]
    machine: str
    notices: Sequence[str] = ()
    missing: Sequence[str] = ()
