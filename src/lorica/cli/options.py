"""What several commands share: options, settings given as --flags, and printing."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from lorica.errors import ConfigError

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
"""An option without a value."""

Words = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""The words that cyclopts leaves alone: settings as flags, in any depth."""


def split(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and flags: --key value, --key=value, or a bare --key, which means true.

    A flag given several times keeps all its values, as a list.
    """
    plain: list[str] = []
    flags: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise ConfigError(f"{word} is not an option.", fix="settings are --name value")
            plain.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if key in flags:
            before = flags[key] if isinstance(flags[key], list) else [flags[key]]
            flags[key] = [*before, value]
        else:
            flags[key] = value
    return plain, flags


def one(plain: Sequence[str], what: str, *, needed: bool = False) -> str | None:
    """The single plain word of a command. Raises: ConfigError if there are more, or none."""
    if len(plain) > 1:
        raise ConfigError(f"one {what} is taken, and {len(plain)} were given: {', '.join(plain)}.",
                          fix="settings are written --name value")  # fmt: skip
    if needed and not plain:
        raise ConfigError(f"no {what} was given.")
    return plain[0] if plain else None


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))
