"""Read single tensors of a base from its safetensors files.

Quantised layers keep no copy of their original weights. Where those are needed (merging into them,
LoftQ's start), one tensor at a time is read from the files of the base.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.base.samples import places, sampled
from lorica.errors import FileError

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read(file: str, key: str, transposed: bool = False) -> Tensor:
    """Tensor `key` of a safetensors file as (O, I), in the dtype of the file.

    transposed: it is (I, O) in the file. Raises: FileError if it cannot be read any more.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            weight = tensors.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"the original weight {key} of the base cannot be read from {file}.",
            why=error,
            fix="put the base's folder back where it was",
        ) from None
    return weight.T if transposed else weight


def keys_of(folder: str) -> dict[str, str]:
    """Every tensor of a base (folder or hub id) and its file; only what is on this machine."""
    from safetensors import safe_open

    single, index = _local_file(folder, SINGLE), _local_file(folder, INDEX)
    if single is not None:
        with safe_open(single, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    if index is None:
        return {}
    names: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    files = {name: _local_file(folder, name) for name in sorted(set(names.values()))}
    return {key: file for key, name in names.items() if (file := files[name]) is not None}


def file_names(folder: str) -> dict[str, str]:
    """Every tensor of a base (folder or hub id) and the name of its file; {}: it is not here.

    A file of the hub's cache, which is a link to a blob, has the name that the index gives it.
    """
    if _local_file(folder, SINGLE) is not None:
        return dict.fromkeys(keys_of(folder), SINGLE)
    index = _local_file(folder, INDEX)
    if index is None:
        return {}
    return dict(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])


def dtype_of(keys: dict[str, str]) -> str | None:
    """The dtype of most floats of a base, as torch names it; None: it has none, or no files."""
    return next(iter(float_dtypes(keys)), None)


def float_dtypes(keys: dict[str, str]) -> list[str]:
    """The dtypes of the floats of a base, as torch names them; that of most floats first."""
    sizes: Counter[str] = Counter()
    for tensor in _slices(keys):
        if (name := FLOATS.get(tensor.get_dtype())) is not None:
            sizes[name] += math.prod(tensor.get_shape())
    return [name for name, _ in sizes.most_common()]


def largest_file(keys: dict[str, str]) -> int | None:
    """Bytes of tensors in the largest of several files; None: there are not several."""
    sizes: Counter[str] = Counter()
    for (_, file), tensor in zip(sorted(keys.items(), key=_by_file), _slices(keys), strict=True):
        sizes[file] += math.prod(tensor.get_shape()) * BYTES.get(tensor.get_dtype(), 1)
    return max(sizes.values()) if len(sizes) > 1 else None


def _slices(keys: dict[str, str]) -> Iterator[Any]:
    """Slices of all tensors, file by file; their numbers are not read."""
    from safetensors import safe_open

    for file, members in groupby(sorted(keys.items(), key=_by_file), key=lambda item: item[1]):
        with safe_open(file, framework="pt") as tensors:
            for key, _ in members:
                yield tensors.get_slice(key)


def _by_file(item: tuple[str, str]) -> tuple[str, str]:
    return item[1], item[0]


def key_of(layer: str, keys: dict[str, str], prefix: str) -> str | None:
    """The name of a layer's weight in the files; `prefix` is what transformers may add or drop."""
    plain = f"{layer}.weight"
    return next(
        (k for k in (plain, f"{prefix}.{plain}", plain.removeprefix(f"{prefix}.")) if k in keys),
        None,
    )


def sample(file: str, key: str) -> bytes:
    """The numbers of a matrix that a fingerprint samples; the others are not read."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        matrix: Any = tensors.get_slice(key)
        rows, columns = matrix.get_shape()
        at = [divmod(int(place), columns) for place in places(rows * columns)]
        return sampled(torch.stack([matrix[r : r + 1, c : c + 1].flatten()[0] for r, c in at]))


def _local_file(folder: str, name: str) -> str | None:
    """A file of a base, in its folder or the hub's cache; None: it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if Path(folder).is_dir():
        file = Path(folder) / name
        return str(file.resolve()) if file.is_file() else None
    cached = try_to_load_from_cache(folder, name)
    return cached if isinstance(cached, str) else None
