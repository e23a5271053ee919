"""Which files of an adapter folder hold its tensors, whichever tool wrote it."""

import re
from pathlib import Path

from lorica import plain_files
from lorica.errors import FileError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import LITGPT, MLX, SHARDS, TUNE, WEIGHTS, is_adapter
from lorica.formats.foreign.refusals import refuse


def weights_files(folder: Path) -> list[Path]:
    """The files of tensors of an adapter folder: one, or all its shards.

    Raises: FileError that says what the folder holds instead, and how to convert it.
    """
    if not folder.is_dir() or not is_adapter(folder):
        refuse(folder)
    for name in (WEIGHTS, MLX, LITGPT):
        if plain_files.is_file(folder / name):
            return [folder / name]
    if plain_files.is_file(folder / SHARDS):
        return sorted({folder / name for name in shard_of_tensors(folder).values()})
    tune = [p for p in sorted(folder.iterdir()) if re.fullmatch(TUNE, p.name)]
    if len(tune) > 1:
        raise FileError(
            f"{folder} holds the adapters of several epochs: {listed(p.name for p in tune)}.",
            fix="move the one that you mean into a folder of its own, with adapter_config.json",
        )
    if not tune or not plain_files.is_file(tune[0]):
        refuse(folder)
    return tune


def shard_of_tensors(folder: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it, by the index. Raises: FileError if a shard is missing."""
    index = folder / SHARDS
    shards = commit.read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise FileError(f"{index} has no weight_map.", fix="copy the folder again")
    names = {plain_files.check_name(name, index) for name in shards.values()}
    if absent := sorted(name for name in names if not plain_files.is_file(folder / name)):
        raise FileError(
            f"{index} names shards that are not in the folder: {listed(absent)}.",
            fix="copy the missing files into the folder",
        )
    if not names:
        raise FileError(f"{index} names no tensor.", fix="copy the folder again")
    return shards
