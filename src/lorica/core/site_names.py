"""Layer names: what the entries of target_modules and of the patterns select. No torch.

PEFT's rules. A text of letters, digits, "_" and "." alone is a name ending; another text is a regex
on the whole name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lorica.core.patterns import check_pattern

Value = TypeVar("Value")


def matching(key: str, entries: str | Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Entry of a setting -> the names that it selects.

    key: the setting, for the message. Raises: TargetError if an entry is not a regular expression.
    """
    if isinstance(entries, str) and re.fullmatch(r"[\w.]+", entries):
        entries = [entries]
    if isinstance(entries, str):
        check_pattern(key, entries, names)
        patterns = {entries: re.compile(entries)}
    else:
        patterns = {e: re.compile(rf"(.*\.)?{re.escape(e)}") for e in entries}
    return {e: [name for name in names if p.fullmatch(name)] for e, p in patterns.items()}


def lies_in(site: str, entry: str) -> bool:
    """Whether an entry of modules_to_save names the layer, or a module that contains it."""
    return re.fullmatch(rf"(.*\.)?{re.escape(entry)}(\..*)?", site) is not None


def names(pattern: str, site: str) -> bool:
    """Whether a pattern of rank_pattern or alpha_pattern matches: a name ending or a regex, as in
    PEFT."""
    return re.match(rf"(.*\.)?({pattern})$", site) is not None


def first(patterns: Mapping[str, Value], site: str) -> Value | None:
    """The value of the first pattern that names `site`; None if none does."""
    return next((value for pattern, value in patterns.items() if names(pattern, site)), None)


def block_of(name: str) -> int | None:
    """The number of the block that a layer belongs to: the first number in its name."""
    return next((int(word) for word in name.split(".") if word.isdigit()), None)
