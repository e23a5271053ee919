"""Reasons: what was decided, why, and the evidence for it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """what: a setting or a question. value: what was decided. why: with the numbers of the rows and
    the machine. evidence: ids in evidence.toml."""

    what: str
    value: Any
    why: str
    evidence: tuple[str, ...] = ()


def percent(share: float) -> str:
    """A share of 1 in percent: "3.2 %", "26 %", "under 0.1 %"."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def gib(size: int) -> str:
    """Bytes as GiB, or as MiB below one: "13.2 GiB", "410 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
