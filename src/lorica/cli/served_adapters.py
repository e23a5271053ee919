"""The adapters that `lorica serve` is started with: named one by one, or by a folder of them."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.errors import ConfigError, LoricaError, counted, listed

if TYPE_CHECKING:
    from lorica.serve.engine import ServingEngine


def parse_adapters(
    adapters: Iterable[str], conditions: Iterable[str]
) -> dict[str, tuple[Path, list[str]]]:
    """NAME=FOLDER and NAME=CONDITION,... -> folder and conditions by name. Raises: ConfigError."""
    folders: dict[str, tuple[Path, list[str]]] = {}
    for text in adapters:
        name, folder = _split("--adapter", text, "NAME=FOLDER")
        if name in folders:
            raise ConfigError(f"two adapters have the name {name!r}.", fix="rename one of them")
        folders[name] = Path(folder), []
    for text in conditions:
        name, words = _split("--conditions", text, "NAME=CONDITION,CONDITION")
        if name not in folders:
            raise ConfigError(
                f"--conditions names {name!r}, which no --adapter has.",
                adapters=listed(folders),
                fix=f"add --adapter {name}=FOLDER",
            )
        folders[name][1].extend(words.split(","))
    return folders


def _split(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{option} {text} is not of the form {form}.", fix=f"{option} {form}")
    return name, value


def load_adapters(
    engine: "ServingEngine", folders: dict[str, tuple[Path, list[str]]], root: Path | None
) -> None:
    """Load what is served. Of those named one by one, all errors are reported at once; of those
    in a folder, one that fails is a notice, and is listed with the state "failed".

    Raises: ConfigError.
    """
    from lorica.serve.names import adapters_in

    store = engine.store
    errors: dict[str, LoricaError] = {}
    for name, (folder, conditions) in folders.items():
        try:
            generation = store.load(name, folder, expected_generation=0, conditions=conditions)
        except LoricaError as error:
            errors[name] = error
        else:
            print_notices(name, generation.notices)
    if errors:
        first = next(iter(errors.values()))
        if len(errors) == 1:
            raise first
        raise ConfigError(
            f"{counted(len(errors), 'adapter')} cannot be served.",
            **{name: error.what for name, error in errors.items()},
            fix=first.fix or "see lorica info FOLDER",
        )
    if root is not None:
        found_folders, notices = adapters_in(root)
        print_notices(str(root), notices)
        for name, folder in found_folders.items():
            if name not in folders:
                store.register(name, folder)
        for name, error in store.load_registered().items():
            print_notices(name, [f"not served: {error.what}"])


def print_notices(name: str, notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"{name}: {notice}", file=sys.stderr)
