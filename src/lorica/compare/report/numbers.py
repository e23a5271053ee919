"""Numbers as text: the numbers of one column have the same unit and the same digits."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_DECIMALS = 6
BYTES = (("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40))
SECONDS = (("ms", 1e-3), ("s", 1.0))
NONE = "–"
"""In place of a number that is not known."""


class Unit(NamedTuple):
    name: str
    size: float


def unit_of(values: Iterable[float], units: Sequence[tuple[str, float]]) -> Unit:
    """The largest unit in which the median of `values` is at least 1; else the smallest one."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2] if ordered else 0.0
    return Unit(*max((u for u in units if u[1] <= middle), default=units[0], key=lambda u: u[1]))


def decimals_of(values: Iterable[float], significant: int = 2) -> int:
    """Decimals that show `significant` digits of the smallest value that is not zero."""
    sizes = [abs(v) for v in values if math.isfinite(v) and v != 0]
    if not sizes:
        return significant
    # a value below a thousandth of the largest one does not decide
    least = min(size for size in sizes if size >= max(sizes) / 1000)
    return min(MAX_DECIMALS, max(0, significant - 1 - math.floor(math.log10(least))))


def written(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """A number with separated thousands and a true minus sign; NONE for None and NaN."""
    if value is None or not math.isfinite(value):
        return NONE
    value = round(value, decimals) + 0.0  # no "-0.00"
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{value:,.{decimals}f}".replace("-", "\u2212")


def compact(value: float) -> str:
    """A number of an axis or a learning rate: 0.003, 3e-5, 20,000."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "\u2212") if value < 0 else text


def written_rates(rates: Sequence[float | None]) -> list[str]:
    """Learning rates with the same digits: 0.0021 and 0.0040, or 2.1e-5 and 4.0e-5."""
    known = [rate for rate in rates if rate]
    for decimals in range(MAX_DECIMALS):
        if all(abs(round(rate, decimals) - rate) < 0.02 * rate for rate in known):
            return [written(rate, decimals) for rate in rates]
    return [NONE if rate is None else f"{rate:.1e}".replace("e-0", "e-") for rate in rates]
