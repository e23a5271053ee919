"""Translate a folder that another tool wrote, by the name of its weights and of its tensors."""

import re
from pathlib import Path

from torch import Tensor

from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import CONFIG, LITGPT, MLX, SHARDS, TUNE, WEIGHTS
from lorica.formats.foreign import litgpt, mlx_lm, peft_folder, torchtune
from lorica.formats.foreign.diffusion import refuse_diffusion
from lorica.formats.foreign.translation import FolderFiles, Translation
from lorica.formats.foreign.weights import shard_of_tensors


def translate(files: FolderFiles, weights: list[Path]) -> Translation:
    """The adapter of a folder without a manifest, under PEFT's names.

    weights: its files of tensors. Raises: FileError for a key that is not understood, and for a
        setting without which the result is not known.
    """
    name = weights[0].name
    if name == MLX:
        return mlx_lm.translate(files)
    if name == LITGPT:
        return litgpt.translate(files)
    tensors = _tensors(files, weights)
    refuse_diffusion(tensors, weights[0])
    config = files.json(CONFIG)
    if torchtune.has_own_names(tensors):
        return torchtune.translate(tensors, config, weights[0])
    return peft_folder.translate(tensors, config, files.folder, sharded=len(weights))


def _tensors(files: FolderFiles, weights: list[Path]) -> dict[str, Tensor]:
    """The tensors of one file, or of shards. Raises: FileError if the index says otherwise."""
    first = weights[0].name
    if first == WEIGHTS or re.fullmatch(TUNE, first):
        return files.tensors(first)
    listed_places = set(shard_of_tensors(files.folder).items())
    tensors, places = dict[str, Tensor](), set[tuple[str, str]]()
    for path in weights:
        shard = files.tensors(path.name)
        tensors |= shard
        places |= {(key, path.name) for key in shard}
    if wrong := sorted(places ^ listed_places):
        raise FileError(
            f"the shards in {files.folder} do not hold what {SHARDS} says.",
            tensors=listed(f"{key} in {name}" for key, name in wrong),
            fix="copy the folder again",
        )
    return tensors
