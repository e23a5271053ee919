"""The adapters that `lorica serve` is started with: named one by one, or by a folder of them."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.errors import ConfigError, LoricaError, counted, listed

if TYPE_CHECKING:
    from lorica.serve.store import Store


@dataclass
class Adapters:
    """named: folders by the name of --adapter. in_folder: those of --adapters. conditions: that may
    be asked for, by name; all, if it has none."""

    named: dict[str, Path] = field(default_factory=dict)
    in_folder: dict[str, Path] = field(default_factory=dict)
    conditions: dict[str, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def parse_adapters(
    adapters: Iterable[str], conditions: Iterable[str], root: Path | None
) -> Adapters:
    """Options as given: NAME=FOLDER and NAME=CONDITION,... Raises: ConfigError; FileError."""
    parsed = Adapters()
    for text in adapters:
        name, folder = _split("--adapter", text, "NAME=FOLDER")
        if name in parsed.named:
            raise ConfigError(f"two adapters have the name {name!r}.", fix="rename one of them")
        parsed.named[name] = Path(folder)
    if root is not None:
        _add_folder(parsed, root)
    known = {**parsed.named, **parsed.in_folder}
    for text in conditions:
        name, words = _split("--conditions", text, "NAME=CONDITION,CONDITION")
        if name not in known:
            raise ConfigError(
                f"--conditions names {name!r}, which is no adapter.",
                adapters=listed(known),
                fix=f"add --adapter {name}=FOLDER",
            )
        parsed.conditions.setdefault(name, []).extend(words.split(","))
    return parsed


def check_not_the_base(adapters: Adapters, base_name: str) -> None:
    """Leave out a folder of --adapters that has the name of the base, with a notice.

    Raises: ConfigError if --adapter gives that name.
    """
    if folder := adapters.in_folder.pop(base_name, None):
        adapters.notices.append(
            f"{folder} is not served: it has the name of the base; use --adapter NAME={folder}"
        )
    if folder := adapters.named.get(base_name):
        raise ConfigError(
            f"{base_name!r} is the name of the base, and of the adapter in {folder}.",
            fix=f"name it otherwise: --adapter NAME={folder}",
        )


def _add_folder(parsed: Adapters, root: Path) -> None:
    from lorica.serve.names import adapters_in

    folders, parsed.notices = adapters_in(root)
    for name, folder in folders.items():
        if name in parsed.named:
            parsed.notices.append(f"{folder} is not served: --adapter {name} is another one")
        else:
            parsed.in_folder[name] = folder


def _split(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{option} {text} is not of the form {form}.", fix=f"{option} {form}")
    return name, value


def load_adapters(store: "Store", adapters: Adapters) -> None:
    """Load what is served. Of those named one by one, all errors are reported at once; of those in
    a folder, one that fails is a notice, and has the state "failed" in the operator's list.

    Raises: LoricaError.
    """
    print_notices("--adapters", adapters.notices)
    for name in adapters.in_folder:
        store.register(name)
    errors: dict[str, LoricaError] = {}
    for name, folder in adapters.named.items():
        try:
            _load(store, name, folder, adapters)
        except LoricaError as error:
            errors[name] = error
    _raise_all(errors)
    for name, folder in adapters.in_folder.items():
        try:
            _load(store, name, folder, adapters)
        except LoricaError as error:
            print_notices(name, [f"not served: {error.summary}"])


def _load(store: "Store", name: str, folder: Path, adapters: Adapters) -> None:
    """Load an adapter, and print its notices. Raises: LoricaError."""
    print(f"{name}: loading {folder}", file=sys.stderr, flush=True)
    conditions = adapters.conditions.get(name, ())
    print_notices(
        name, store.load(name, folder, expected_generation=0, conditions=conditions).notices
    )


def _raise_all(errors: dict[str, LoricaError]) -> None:
    """Raises: the only error, or a ConfigError with all of them."""
    if not errors:
        return
    first = next(iter(errors.values()))
    if len(errors) == 1:
        raise first
    raise ConfigError(
        f"{counted(len(errors), 'adapter')} cannot be served.",
        **{name: error.what for name, error in errors.items()},
        fix=first.fix or "see lorica info FOLDER",
    )


def print_notices(name: str, notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"{name}: {notice}", file=sys.stderr)
