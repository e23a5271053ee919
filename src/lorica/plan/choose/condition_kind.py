"""What the conditions of the rows are, as `method.condition` of HyperLoRA names it."""

import re
from collections.abc import Collection

from lorica.plan.choose.reason import Reason

PAIR = re.compile(r"[^\W\d_]+-[^\W\d_]+")
LONG = 4  # words from which on a condition is a text


def condition_kind(conditions: Collection[str]) -> Reason:
    """embedding: lists of numbers. text: sentences. pair: "en-fr", whose parts occur in several
    conditions. task: any other names."""
    names = list(conditions)
    if all(name.startswith("[") for name in names):
        kind, why = "embedding", "the conditions are lists of numbers"
    elif sum(len(name.split()) >= LONG for name in names) * 2 > len(names):
        kind, why = "text", "most conditions are sentences"
    elif all(PAIR.fullmatch(name) for name in names) and _parts(names) < 2 * len(names):
        kind, why = "pair", f"{len(names)} pairs of {_parts(names)} names, which they share"
    else:
        kind, why = "task", f"{len(names)} names"
    return Reason("condition", kind, why, ("rule-conditions",))


def _parts(names: list[str]) -> int:
    return len({part for name in names for part in name.split("-")})
