"""A method's default learning rate as a function of the base's hidden size, without torch."""

import math

SMALL, LARGE = 64, 4096
"""The hidden sizes that a method's two rates for AdamW are for."""


def rate_by_size(
    rates: tuple[float, float, float], optimizer: str, hidden_size: int | None, factor: float = 1.0
) -> float:
    """The peak rate where none is given, to two digits; see core/rates.py.

    rates: `Method.rates`. optimizer: "adamw", "paged_adamw" or "sgd". hidden_size: of the base;
        None: not known. It counts as large then, because a rate that is too low does less harm.
    factor: `Method.rate_factor`.
    """
    small, large, sgd = rates
    if optimizer == "sgd":
        small = large = sgd
    share = math.log((hidden_size or LARGE) / SMALL) / math.log(LARGE / SMALL)
    rate = small * (large / small) ** min(max(share, 0.0), 1.0)
    return float(f"{rate * factor:.2g}")
