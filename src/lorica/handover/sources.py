"""Which adapters are at a place, and the names that requests use for them."""

import re
from pathlib import Path

from lorica import plain_files
from lorica.errors import ConfigError
from lorica.formats import commit
from lorica.formats.adapter_folder import PICKLED, SHARDS, WEIGHTS, adapter_folder, is_adapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALONE = {WEIGHTS, PICKLED, SHARDS}
"""Weights of an adapter that has lost its settings, if nothing else is beside them."""


def name_of_condition(condition: str) -> str:
    """Raises: ConfigError if nothing of it can be the name of an adapter."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", condition).strip("-._")
    if NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"the condition {condition!r:.80} cannot be the name of a model in requests.",
        fix="export it by --condition, alone: the export is named after the folder",
    )


def adapters_in(source: Path) -> dict[str, Path]:
    """Name -> folder of the adapters at `source`: it itself, or those side by side in it."""
    own = source.resolve()
    name = own.parent.name if own.name == "adapter" else own.name
    if is_adapter(adapter_folder(source)) or not plain_files.is_folder(own):
        return {served_name(name): source}
    inside = [source / name for name in plain_files.names_in(own)]
    adapters = {served_name(path.name): path for path in inside if _has_adapter(path)}
    return adapters or {name: source}  # reading it says what is wrong


def _has_adapter(path: Path) -> bool:
    """Whether a folder is a run or an adapter, be it one that cannot be read: that is an error."""
    if not path.is_dir() or path.name.startswith(commit.STAGING):
        return False
    names = {*plain_files.names_in(path.resolve())}
    is_run = {"config.yaml", "events.jsonl"} <= names
    return is_run or is_adapter(path) or is_adapter(path / "adapter") or bool(names & ALONE)


def served_name(name: str) -> str:
    """The name that requests use. Raises: ConfigError if a folder's name cannot be one."""
    if NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"{name!r:.80} cannot be the name of a model in requests.",
        fix="rename the folder: letters, digits, points, - and _ alone, 128 at most",
    )
