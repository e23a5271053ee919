"""Durations as words of the command line: 90s, 10min, 1.5h."""

import re

from lorica.errors import ConfigError

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
DURATION = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,7})?)\s*(s|sec|min|m|h)", re.ASCII)


def seconds_of(text: str, option: str) -> float:
    """The seconds that `text` says. option: that it was given to.

    Raises: ConfigError if it is no duration above zero.
    """
    match = DURATION.fullmatch(text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(
            f"{option} is {text!r:.60}, which is no duration.", fix="90s, 10min or 1h"
        )
    return float(match[1]) * UNITS[match[2]]
