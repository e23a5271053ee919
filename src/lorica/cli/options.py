"""What several commands share: options, settings given as --flags, and printing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from lorica import plain_files
from lorica.errors import ConfigError

if TYPE_CHECKING:
    from lorica.base.load import LoadedModel

Bank = Annotated[bool, Parameter(negative=(), show_default=False)]
"""An option without a value."""

Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**32))]
"""What random draws follow from."""

Words = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""The words that cyclopts leaves alone: settings as flags, in any depth."""


def split(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and flags: --key value, --key=value, or a bare --key, which means true.

    A flag given several times keeps all its values, as a list.
    Raises: ConfigError for a second word behind a flag that is no path: lists have commas; and
        for the value of a switch, whose own word is not among these.
    """
    plain: list[str] = []
    flags: dict[str, Any] = {}
    rest = list(words)
    last = ""  # the flag and value that were read before
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise ConfigError(f"{word} is not an option.", fix="settings are --name value")
            if word.lower() in ("true", "false"):
                raise ConfigError(
                    f"{word} stands behind a switch, which takes no value.",
                    fix="leave it out; to turn a switch off: --no_exact_match, and others alike",
                )
            if last and not Path(word).exists() and not word.endswith((".yaml", ".yml")):
                raise ConfigError(
                    f"{word} stands behind {last}, and is no path here.",
                    fix=f"several values have commas: {last},{word}",
                )
            plain.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        last = f"--{key} {value}" if value != "true" else ""
        if key in flags:
            before = flags[key] if isinstance(flags[key], list) else [flags[key]]
            flags[key] = [*before, value]
        else:
            flags[key] = value
    return plain, flags


def one(plain: Sequence[str], what: str, *, needed: bool = False) -> str | None:
    """The single plain word of a command. Raises: ConfigError if there are more, or none."""
    if len(plain) > 1:
        raise ConfigError(
            f"one {what} is taken, and {len(plain)} were given: {', '.join(plain)}.",
            fix="settings are written --name value",
        )
    if needed and not plain:
        raise ConfigError(f"no {what} was given.")
    return plain[0] if plain else None


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


Grade = Literal["same shapes", "different"]
"""How far a base may be from the one that the adapter was trained on."""


Quantisation = Literal["nf4", "fp4", "int8", "none"]
"""How a command loads a base: in 4 or 8 bits a weight, or in floats."""


def open_model(
    path: Path | None,
    base: str | None,
    dtype: str | None,
    allow_base: Grade | None,
    quantisation: Quantisation | None = None,
) -> "LoadedModel":
    """The model that a command works on: an adapter on its base, or a base alone.

    path: a run, an adapter, or a base; None: `base` alone.
    dtype: None: as in training; float32 for a base alone.
    quantisation: None: as in training; a base alone as it is.
    Raises: ConfigError if neither is named.
    """
    if path is None and base is None:
        raise ConfigError("no model was named.", fix="name a run or an adapter, or pass --base")
    from lorica.base.bundled import NAME
    from lorica.base.load import load
    from lorica.formats.adapter_folder import is_adapter
    from lorica.formats.open_adapter import open_adapter

    alone = path is None or str(path) == NAME
    if path is not None and plain_files.is_file(path / "config.json") and not is_adapter(path):
        alone = True
    if alone and path is not None and base is not None:
        raise ConfigError(
            f"{path} is a base, and --base {base} names another.",
            fix="leave --base out, or name an adapter",
        )
    if alone:
        return load(str(path or base), dtype=dtype or "float32", quantisation=quantisation)
    return open_adapter(
        str(path), base=base, dtype=dtype, allow_base=allow_base, quantisation=quantisation
    )
