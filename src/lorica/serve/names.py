"""Names of adapters, and the folders that they name inside one root.

A client gives a name, never a path. The name is plain ASCII in lower case, so that no two names
look alike, and the folder of that exact name must be a folder of the root itself, not a link.
"""

import re
from pathlib import Path

from lorica import plain_files
from lorica.errors import ConfigError, FileError, LoricaError, listed
from lorica.formats.adapter_folder import adapter_folder, is_adapter

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"


def base_name_of(path: str) -> str:
    """The name under which the base at `path` (a folder or hub id) is served."""
    return Path(path).resolve().name if Path(path).is_dir() else Path(path).name


def check_alias(name: str) -> str:
    """Return the name of an adapter. Raises: ConfigError unless it is of the allowed form."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} cannot be the name of an adapter.", allowed=RULE, fix="choose another"
        )
    return name


def folder_in(root: Path, name: str) -> Path:
    """The folder called `name` in `root`, of an adapter or a run.

    Raises: ConfigError if it is no name of an adapter; FileError if `root` has no such folder, or
        it is a link.
    """
    check_alias(name)
    # The listing has the exact names: a file system may take other cases and forms for the same.
    if name not in plain_files.names_in(root) or not plain_files.is_folder(root / name):
        raise FileError(
            f"there is no adapter {name!r} in the folder of adapters.",
            fix="copy its folder there, or check the name",
        )
    return root / name


def adapters_in(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Every adapter folder or run in `root`, by its name, and notices on what is left out.

    Raises: FileError if `root` is no folder, or has no adapter; ConfigError if a folder of an
        adapter has a name that no adapter can have.
    """
    folders: dict[str, Path] = {}
    notices: list[str] = []
    if not root.is_dir():
        raise FileError(f"there is no folder {root}.", fix="check --adapters")
    for name in plain_files.names_in(root.resolve()):
        try:
            holds_adapter = _holds_adapter(root / name)
        except LoricaError as error:
            notices.append(f"{root / name} is not served: {error.what}")
            continue
        if holds_adapter:
            folders[name] = root / name
    if wrong := [name for name in folders if not NAME.fullmatch(name)]:
        raise ConfigError(
            f"folders in {root} cannot be names of adapters: {listed(map(repr, wrong))}.",
            allowed=RULE,
            fix="rename them, or name them yourself: --adapter NAME=FOLDER",
        )
    if not folders:
        raise FileError(
            f"{root} holds no adapter.",
            **({"left_out": listed(notices)} if notices else {}),
            fix="name the folder in which the folders of adapters or runs are",
        )
    return folders, notices


def _holds_adapter(folder: Path) -> bool:
    """Raises: FileError for a link, or a run that has not finished."""
    return plain_files.is_folder(folder) and is_adapter(adapter_folder(folder))
