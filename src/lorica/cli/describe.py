"""A run, an adapter or a base on disk as plain data.

Reads headers of weights only, without torch; but an adapter of another tool is read whole.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from lorica import plain_files, strict_json
from lorica.base.folder import check_folder
from lorica.errors import FileError, LoricaError, listed

WEIGHTS, PEFT, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
LITGPT = ("lit_model.lora.safetensors", "lit_model.pth.lora")
BASE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def describe(path: str) -> dict[str, Any]:
    """Raises: FileError if `path` is none of the three, or cannot be read."""
    from lorica.base.bundled import FOLDER, NAME

    folder = FOLDER if path == NAME else Path(path)
    if plain_files.is_file(folder / "config.yaml"):
        return _run(folder)
    if any(plain_files.is_file(folder / name) for name in (MANIFEST, PEFT, *LITGPT)):
        return _adapter(folder)
    if plain_files.is_file(folder / "config.json"):
        return _base(folder)
    from lorica.formats.foreign.refusals import refuse_known

    refuse_known(folder)
    inside = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else None
    raise FileError(
        f"{path} is no run, adapter or base." if folder.exists() else f"{path} is not there.",
        **({"found": inside} if inside else {}),
        fix="name a folder with config.yaml, adapter_config.json, manifest.json or config.json",
    )


def _run(folder: Path) -> dict[str, Any]:
    from lorica.recipe.yaml_file import read_yaml

    settings = read_yaml(folder / "config.yaml").data
    steps = [event["step"] for event in _events(folder) if type(event.get("step")) is int]
    has_ended = plain_files.is_file(folder / "results.json")
    checkpoints = [n for n in plain_files.names_in(folder / "checkpoints") if n[0] != "."]
    state = "finished" if has_ended else f"not finished; lorica train --resume {folder} continues"
    run = {
        "what": "run",
        "folder": str(folder),
        "state": state,
        "steps": max(steps, default=0),
        "versions": settings.pop("versions", {}),
        "settings": settings,
        "figures": _read(folder / "results.json") if has_ended else {},
        "checkpoints": checkpoints,
    }
    if plain_files.is_folder(folder / "adapter"):
        run["adapter"] = _adapter(folder / "adapter")
    return run


def _adapter(folder: Path) -> dict[str, Any]:
    adapter: dict[str, Any] = {"what": "adapter", "folder": str(folder)}
    if plain_files.is_file(folder / MANIFEST):
        manifest = _read(folder / MANIFEST)
        keys = ("method", "targets", "labels", "seed", "base", "versions")
        adapter |= {key: manifest[key] for key in keys if manifest.get(key) is not None}
        match adapter.get("base"):
            case dict() as base:
                for key in ("weights", "tokenizer_parts"):  # digests mean nothing to a reader
                    base.pop(key, None)
        changed = _changed_files(folder, manifest.get("files", {}))
        adapter["files"] = f"not as saved: {listed(changed)}" if changed else "as they were saved"
        if plain_files.is_file(folder / WEIGHTS):
            adapter |= _tensors([folder / WEIGHTS])
        return adapter
    return adapter | _foreign(folder)


def _foreign(folder: Path) -> dict[str, Any]:
    """An adapter without a manifest: read as it is when it is loaded. Raises: FileError."""
    from lorica.formats.adapter_file import read
    from lorica.formats.foreign.weights import weights_files

    file = read(folder)
    settings = {key: value for key, value in file.config.items() if value is not None}
    return {
        "layout": file.tool,
        "base": {"path": file.base_path},
        "settings": {k: v for k, v in settings.items() if k != "base_model_name_or_path"},
        "notices": list(file.notices),
        "files": "without a manifest: the base cannot be verified",
        **_tensors(weights_files(folder)),
    }


def _base(folder: Path) -> dict[str, Any]:
    config = _read(folder / "config.json")
    base: dict[str, Any] = {"what": "base", "folder": str(folder)}
    match config.get("architectures"):
        case [*names]:
            base["architecture"] = listed(names)
        case _:
            base["architecture"] = listed([])
    base |= {key: config[key] for key in BASE_KEYS if key in config}
    tokenizer = folder / "tokenizer_config.json"
    has_template = plain_files.is_file(tokenizer) and "chat_template" in _read(tokenizer)
    base["tokenizer"] = any(map(plain_files.is_file, (folder / "tokenizer.json", tokenizer)))
    base["chat_template"] = has_template or plain_files.is_file(folder / "chat_template.jinja")
    try:
        check_folder(folder)
    except LoricaError as error:
        return base | {"files": f"not usable: {error.what}"}
    return base | {"files": "whole"} | _tensors(sorted(folder.glob("*.safetensors")))


def _tensors(files: list[Path]) -> dict[str, Any]:
    """Counts from the headers of safetensors files."""
    from safetensors import SafetensorError, safe_open

    names, values, dtypes = 0, 0, set()
    for file in filter(plain_files.is_file, files):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    header = tensors.get_slice(key)
                    names += 1
                    values += prod(header.get_shape())
                    dtypes.add(header.get_dtype())
        except (OSError, SafetensorError) as error:
            raise FileError(f"{file} is damaged: {error}.", fix="copy the file anew") from None
    size = sum(file.stat().st_size for file in files)
    return {"tensors": names, "values": values, "dtypes": sorted(dtypes), "bytes": size}


def _changed_files(folder: Path, files: Any) -> list[str]:
    """Names of files that do not have the digest of the manifest. Raises: FileError."""
    manifest = folder / MANIFEST
    match files:
        case dict() if all(type(recorded) is dict for recorded in files.values()):
            paths = {name: folder / plain_files.check_name(name, manifest) for name in files}
            return [name for name, path in paths.items() if not _has_digest(path, files[name])]
    raise FileError(f"{manifest} has no digests of its files.", fix="copy the folder anew")


def _has_digest(file: Path, recorded: Mapping[str, Any]) -> bool:
    if not plain_files.is_file(file):
        return False
    with plain_files.open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == recorded.get("sha256")


def _read(file: Path) -> dict[str, Any]:
    return strict_json.read(file, finite=False)


def _events(run: Path) -> list[dict[str, Any]]:
    """The events of a run. A line that a kill cut short is ignored."""
    file, events = run / "events.jsonl", []
    for line in plain_files.read_lines(file) if plain_files.is_file(file) else ():
        with suppress(ValueError):
            events.append(strict_json.parse(line))
    return [event for event in events if type(event) is dict]
