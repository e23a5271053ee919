"""The learning rate: the method's own for the base's hidden size, lower for high ranks.

The rate of each method was searched in docs/methods/results.md at hidden size 64, and is published
at 4096 (core/rate_by_size.py). With alpha = 2 r the scale of the update does not fall with the
rank, and so the best rate does: in docs/claims.md from 0.01 (r=8) to 0.003 (r=16), which the root
of the rank describes.
"""

import math
from collections.abc import Mapping
from typing import Any

from lorica.core.rate_by_size import rate_by_size
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Base

MEASURED_RANK = 8
"""The rank at which the rates were searched (AdaLoRA's: on average at the end)."""

BY_RANK = {"lora", "dora", "adalora", "hyperlora"}
"""Methods whose update is alpha / r B A with alpha = 2 r."""

RESULT_OF = {
    "lora": "results-lora",
    "dora": "results-dora",
    "adalora": "results-adalora",
    "hyperlora": "results-hyperlora",
    "mora": "results-mora",
    "full": "results-full",
}


def choose_rate(method: str, facts: Mapping[str, Any], r: int | None, base: Base) -> Reason:
    """The learning rate. facts: what the method declares: rates, rate_source."""
    rate = rate_by_size(facts["rates"], "adamw", base.hidden)
    size = f"hidden size {base.hidden}" if base.hidden else "an unknown hidden size"
    small, large, _ = facts["rates"]
    why = (
        f"the default of {method} for {size} is {rate:g}: measured {small:g} at 64, "
        f"published {large:g} at 4096 ({facts['rate_source']})"
    )
    evidence: tuple[str, ...] = (RESULT_OF[method],)
    if method in BY_RANK and r is not None and r > MEASURED_RANK:
        rate *= math.sqrt(MEASURED_RANK / r)
        why += f"; times the root of {MEASURED_RANK}/{r}, since alpha = 2 r keeps the scale"
        evidence += ("claims-rate-by-rank",)
    return Reason("learning_rate", float(f"{rate:.2g}"), why, evidence)
