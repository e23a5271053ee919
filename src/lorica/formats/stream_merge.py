"""Write a merged model tensor by tensor: memory never holds a whole file of it.

The tensors go into files of the same names as in the base. A merged weight is computed when it is
due, written, and dropped; the pages of the base's mapped weight are released. This needs a name in
the files for each tensor of the model. Where transformers converts tensors as it loads them (it
fuses the experts of most mixtures), `plan_merge` returns None, and the model is saved as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorica.base.checkpoint_tensors import SINGLE, file_names
from lorica.base.describe import locate
from lorica.base.load import LoadedModel
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.model_view import converts_weights, model_view
from lorica.core.merge import new_bias_notice, untied_notice
from lorica.formats import commit
from lorica.formats.merged_layers import MergedLayers, merged_layers
from lorica.formats.sharded_files import ShardedFiles, StoredTensor, check_space
from lorica.progress import Progress


@dataclass(frozen=True)
class MergePlan:
    """How a merged model is written. keys: in the files, by the names in the model's state."""

    base: LoadedModel
    merged: MergedLayers
    keys: dict[str, str]
    files: ShardedFiles
    dtype: torch.dtype


def plan_merge(
    base: LoadedModel, folder: Path, dtype: torch.dtype, target: str | None
) -> MergePlan | None:
    """Plan how to write `base` with its active adapters into `folder`.

    In place: the configuration is written into `folder`, and says which weights are tied.
    target: "dequant", "original" or None. Returns: None if the model cannot be streamed.
    Raises: MergeError as `merge`; ResourceError if the disk has too little space.
    """
    model: Any = base.model
    if converts_weights(model):
        return None
    merged = merged_layers(model, target, dtype)
    if merged is None:
        return None
    if merged.untied:
        model.config.tie_word_embeddings = False
    keys = _saved_keys(model, merged.same, folder)
    names = _files_of(list(keys.values()), file_names(locate(base.path)), model_view(model).prefix)
    files: dict[str, list[StoredTensor]] = {name: [] for name in sorted(set(names.values()))}
    for layer in merged.layers:
        shapes = dict(layer.shapes)
        if layer.optional is not None:
            shapes[layer.optional] = next(iter(layer.shapes.values()))[:1]
        for name in shapes.keys() & keys.keys():
            stored = merged.dtypes.get(name, dtype)
            tensor = StoredTensor(keys[name], shapes[name], stored, name == layer.optional)
            files[names[keys[name]]].append(tensor)
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    plan = MergePlan(base, merged, keys, ShardedFiles(folder, files), dtype)
    check_space(folder, plan.files.nbytes)
    return plan


@torch.no_grad()
def write_merge(plan: MergePlan) -> list[str]:
    """Compute and write every tensor. Returns: notices. Raises: MergeError; OSError of the disk."""
    ranges, new_biases = mapped_weights(), list[str]()
    what = Progress("writing the merged model", plan.files.nbytes, unit="B")
    with plan.files as files, what as progress:
        for layer in plan.merged.layers:
            tensors = layer.compute()
            if layer.optional in tensors:
                new_biases.append(layer.optional.removesuffix(".bias"))
            for name in list(tensors):
                if (key := plan.keys.get(name)) is not None:
                    tensor = tensors.pop(name)
                    tensor = tensor.to(plan.merged.dtypes.get(name, plan.dtype))
                    files.write(key, tensor)
                    progress.advance(tensor.nbytes)
            for source in layer.sources:
                release_pages(source, ranges)
    notices = list(plan.merged.notices)
    if new_biases:
        notices.append(new_bias_notice(new_biases))
    return notices + [untied_notice(members) for members in plan.merged.untied]


def _saved_keys(model: Any, same: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The key under which transformers saves each tensor, by name; the configuration is saved too.

    It saves numbers in the place of the tensors: one number for tensors that are tied. Names that
    it leaves out are not in the result.
    """
    names = sorted(set(same.values()))
    numbers = {name: torch.tensor([i]) for i, name in enumerate(names)}
    placeholders = {name: numbers[own] for name, own in same.items()}
    # That of the class: the model's own warns that the adapter is not saved.
    type(model).save_pretrained(model, folder, state_dict=placeholders)
    saved = commit.read_tensors(folder / SINGLE)
    (folder / SINGLE).unlink()
    return {names[int(number)]: key for key, number in saved.items()}


def _files_of(keys: list[str], base: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The file of each key: that of the base; of a new tensor, that of another of its layer."""
    last = max(base.values(), default=SINGLE)
    by_layer = {key.rpartition(".")[0]: file for key, file in base.items()}

    def file_of(key: str) -> str:
        for own in (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}"):
            if own in base:
                return base[own]
        layer = key.rpartition(".")[0]
        for own in (layer, layer.removeprefix(f"{prefix}."), f"{prefix}.{layer}"):
            if own in by_layer:
                return by_layer[own]
        return last

    return {key: file_of(key) for key in keys}
