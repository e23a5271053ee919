"""What must change in a training so that it fits the memory.

The changes are tried in the order in which they cost least: fewer rows at a time (the same update),
recomputed activations (the same update, more time), 4-bit weights (time, and a little quality), a
lower rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorica.plan.choose.rank import RANKS
from lorica.plan.choose.reason import Reason, gib
from lorica.plan.choose.situation import Settings, Situation

ROWS_PER_STEP = 8
MARGIN = 1.05
"""By how much more than predicted a training may take: plan's largest error below."""


@dataclass(frozen=True)
class Fit:
    """settings: that fit, over those given. peak: bytes; None: no limit is known. r: if it had to
    fall. reasons: of every change."""

    settings: dict[str, Any]
    peak: int | None
    reasons: tuple[Reason, ...] = ()
    r: int | None = None


def in_batches(rows: int) -> dict[str, int]:
    """Settings that make the same update of ROWS_PER_STEP rows, `rows` at a time."""
    if rows == ROWS_PER_STEP:
        return {"micro_batch_size": rows}
    return {"micro_batch_size": rows, "gradient_accumulation_steps": ROWS_PER_STEP // rows}


def fit(situation: Situation, settings: Settings, *, quantised: bool = False) -> Fit | None:
    """The first change that makes the training fit; None: none does.

    quantised: with 4-bit weights, and with lower ranks as the last resort; otherwise without.
    """
    if situation.memory is None or situation.peak is None:
        extra = {"quantisation": "nf4"} if quantised else {}
        return Fit({**extra, **in_batches(ROWS_PER_STEP)}, None)
    for changes, r in _changes(settings, quantised):
        given = {**settings, **changes}
        if r is not None:
            given["method"] = {**settings["method"], "r": r}
        peak = situation.peak(given)
        if MARGIN * peak <= situation.memory:
            return Fit(changes, peak, tuple(_reasons(changes, r, peak, situation)), r)
    return None


def least(situation: Situation, settings: Settings, *, quantised: bool = False) -> int:
    """The lowest peak that the changes reach, in bytes."""
    assert situation.peak is not None
    peaks = []
    for changes, r in _changes(settings, quantised):
        method = settings["method"] if r is None else {**settings["method"], "r": r}
        peaks.append(situation.peak({**settings, **changes, "method": method}))
    return min(peaks)


def _changes(settings: Settings, quantised: bool) -> Iterator[tuple[dict[str, Any], int | None]]:
    extra: dict[str, Any] = {"quantisation": "nf4"} if quantised else {}
    for again in ({}, {"gradient_checkpointing": True}):
        for rows in (8, 4, 2, 1):
            last = {**extra, **in_batches(rows), **again}
            yield last, None
    r = settings["method"].get("r")
    if quantised and r is not None:
        for lower in reversed([x for x in RANKS if x < r]):
            yield last, lower


def _reasons(changes: Settings, r: int | None, peak: int, situation: Situation) -> Iterator[Reason]:
    assert situation.memory is not None
    room = f"{gib(peak)} of {gib(situation.memory)}"
    rows = changes["micro_batch_size"]
    why = f"it takes {room}" if rows == ROWS_PER_STEP else f"more do not fit ({room})"
    yield Reason(
        "micro_batch_size",
        rows,
        f"{why}; {ROWS_PER_STEP} rows make one update",
        ("rule-micro-batch",),
    )
    if changes.get("gradient_checkpointing"):
        why = "without it not even one row at a time fits; activations are computed twice"
        yield Reason("gradient_checkpointing", True, why, ("rule-memory",))
    if r is not None:
        yield Reason("r", r, f"a higher rank does not fit: {room}", ("rule-memory",))
