"""Check the files of a base as untrusted input, before transformers opens them.

transformers follows links, reads whatever an index names (pickles and absolute paths too), and
allocates every size that config.json states before it looks for the weights. So each file must be
a regular file of the folder, an index may name only safetensors files of the folder, and the sizes
in config.json must be those of the weights.
"""

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorica import plain_files, strict_json
from lorica.base.tensor_headers import check_header
from lorica.errors import BaseError, FileError, listed

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
)
SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}
"""Files that transformers may open."""
MAX_JSON = 128 * 2**20
"""Bytes of a JSON file: the largest tokenizers have 35 MB."""
MAX_HEADER = 100 * 2**20
"""Bytes of the header of a safetensors file, by its format."""
PACKED = 16
"""Values per byte of a checkpoint at most, also if it is quantised."""
SPARE = 10**8
"""Values that a model may have beyond its checkpoint: tied and new heads, buffers."""
METADATA = "__metadata__"
SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
COUNT = re.compile(r"(num|n)_.*(layer|block|expert|stage)s?$|depths?$")
"""Names of settings that say how many modules are built."""


@dataclass(frozen=True)
class WeightContents:
    """The number of tensors in the weight files of a base, and their size in bytes.

    others: name -> dtype, of tensors that are not floats.
    """

    tensors: int
    bytes: int
    others: dict[str, str] = field(default_factory=dict)


def check_files(folder: Path) -> None:
    """Raises: FileError, BaseError if a file of a base is not what its name says."""
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            _check_regular(path)
    for name in CONFIGS:
        if (folder / name).exists():
            _json(folder / name)
    check_index(folder)
    config, contents = _json(folder / "config.json"), weight_contents(folder)
    _check_names(folder, config)
    _check_counts(folder, config, contents)


def _json(path: Path) -> dict[str, Any]:
    """A JSON file of another writer, who may write a key twice, and Infinity."""
    return strict_json.read(path, finite=False, unique=False, follow=True)


def _check_regular(path: Path) -> None:
    """A link may lead to a file of the same kind, as people link weights to another disk.

    A file of another kind (a key, a log) would be read as a template or a vocabulary, and its text
    would be in what is written later.
    """
    if path.is_symlink():
        target = Path(os.path.realpath(path))  # `resolve` fails on a link to itself
        if target.suffix != path.suffix or not target.is_file():
            plain_files.is_file(path)
    elif not plain_files.is_file(path):
        raise FileError(f"{path} is a folder, not a file.", fix="download the model again")
    if path.suffix != ".safetensors" and path.stat().st_size > MAX_JSON:
        raise FileError(f"{path} is larger than {MAX_JSON:,} bytes.", fix="download it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a base's weights are in, as its index names them.

    Raises: FileError if the index names anything but safetensors files of the folder.
    """
    names = files_in_index(folder / INDEX) if (folder / INDEX).exists() else []
    if names and not (folder / SINGLE).is_file():
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))


def files_in_index(index: Path) -> list[str]:
    """The files that an index of weights names, sorted. Raises: as `weight_files`."""
    names = _json(index).get("weight_map")
    is_map = isinstance(names, dict) and all(isinstance(n, str) for n in names.values())
    if not is_map or not names:
        raise FileError(
            f"{index} has no weight_map from tensors to files.", fix="download it again"
        )
    for name in sorted(set(names.values())):
        plain_files.is_file(index.with_name(plain_files.check_name(name, index)))
        if not name.endswith(".safetensors"):
            raise FileError(
                f"{index} names {name:.200}, which is no safetensors file; pickles are not read.",
                fix="convert the model to safetensors where running its code is safe: "
                "model.save_pretrained(folder)",
            )
    return sorted(set(names.values()))


def check_index(folder: Path) -> None:
    """Raises: FileError if the index says that a file has a tensor, and the file does not, or if
    two of its files have one tensor: the weights may differ."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():  # a single file has no need of it
        return
    if not index.exists():
        _check_no_shards(folder)
        return
    headers = {name: header_of(folder / name) for name in files_in_index(index)}
    places: dict[str, str] = _json(index)["weight_map"]
    if wrong := [f"{key} in {name}" for key, name in places.items() if key not in headers[name]]:
        raise FileError(
            f"{index} names {len(wrong)} tensors that are not where it says.",
            missing=listed(wrong),
            fix="download the index and these files again: they are of different models",
        )
    times = Counter(key for header in headers.values() for key in header if key != METADATA)
    if twice := [key for key, count in times.items() if count > 1]:
        raise FileError(
            f"{len(twice)} tensors of {folder} are in more than one of its files.",
            tensors=listed(twice),
            fix="download the index and the files again: they are of different models",
        )


def _check_no_shards(folder: Path) -> None:
    """Raises: FileError if weights are in several files, of which no index says what they hold."""
    shards = [file.name for file in sorted(folder.glob("*.safetensors")) if SHARD.search(file.name)]
    if shards:
        raise FileError(
            f"the weights of {folder} are in several files, and there is no {INDEX}.",
            found=listed(shards),
            fix="download the model again",
        )


def weight_contents(folder: Path) -> WeightContents:
    """The contents of the weight files, by their headers. Raises: FileError if one is damaged."""
    tensors, size, others = 0, 0, dict[str, str]()
    for file in weight_files(folder):
        if file.exists():  # the check of the folder names a missing one
            header = header_of(file)
            tensors += len(header)
            size += file.stat().st_size
            dtypes = {
                key: entry.get("dtype")
                for key, entry in header.items()
                if isinstance(entry, dict) and key != METADATA
            }
            others |= {k: str(d) for k, d in dtypes.items() if not re.match("B?F[0-9]", str(d))}
    return WeightContents(tensors, size, others)


def header_of(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor -> dtype, shape and place. Raises: FileError."""
    with plain_files.open_file(file, follow=True) as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        data = stream.read(length) if 0 <= length <= MAX_HEADER else b""
        size = os.fstat(stream.fileno()).st_size
    try:
        header = json.loads(data)
        assert isinstance(header, dict)
    except (ValueError, RecursionError, AssertionError):
        raise FileError(
            f"{file} is damaged: it has no header of a safetensors file.", fix="download it again"
        ) from None
    check_header(file, header, size - 8 - length)
    return header


def _check_names(folder: Path, config: dict[str, Any]) -> None:
    """Raises: BaseError if config.json names its class by anything but a list of texts."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BaseError(
            f"config.json of {folder} has architectures {names!r:.60}, not a list of names.",
            fix="download config.json again",
        )


def _check_counts(folder: Path, config: dict[str, Any], contents: WeightContents) -> None:
    """Raises: BaseError if config.json asks for more modules than there are tensors for them."""
    for fields in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for key, value in fields.items():
            most = max(contents.tensors, 65_536 if "expert" in key else 64)
            if type(value) is int and value > most and COUNT.match(key):
                raise BaseError(
                    f"config.json of {folder} has {key} {value:,}, and its weights are "
                    f"{contents.tensors:,} tensors.",
                    fix="download config.json and the weights again",
                )


def check_floats(path: str, weights: Iterable[str], contents: WeightContents) -> None:
    """Raises: BaseError if a weight is stored in another type: it would be cast silently.

    weights: the names of the model's weights, which are floats.
    """
    others = contents.others
    if wrong := [f"{name} ({others[name]})" for name in weights if name in others]:
        raise BaseError(
            f"{len(wrong)} weights of {path} are stored in types that are not floats.",
            weights=listed(wrong),
            fix="download the model again",
        )


def check_size(path: str, values: int, contents: WeightContents) -> None:
    """Raises: BaseError if a model has far more values than its weight files can hold.

    values: of the model that config.json describes.
    """
    if values > PACKED * contents.bytes + SPARE:
        raise BaseError(
            f"config.json of {path} describes a model of {values:,} values, and its weights have "
            f"{contents.bytes:,} bytes.",
            fix="download config.json and the weights again",
        )
