"""lorica info: what a run, an adapter or a base on disk is. Reads headers only; no torch."""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyclopts import App

from lorica import plain_files, strict_json
from lorica.cli.options import Bank, print_json
from lorica.errors import FileError, listed

app = App(name="info")

WEIGHTS, PEFT, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


@app.default
def show(path: str, /, *, json: Bank = False) -> None:
    """Say what a folder on disk is: a run, an adapter, or a base.

    Parameters
    ----------
    path
        A run folder, an adapter folder, the folder of a base, or `bundled`.
    json
        Print one JSON object.
    """
    found = describe(path)
    if json:
        print_json(found)
    else:
        print("\n".join(_rows(_brief(found))))


def describe(path: str) -> dict[str, Any]:
    """Raises: FileError if `path` is none of the three, or cannot be read."""
    from lorica.base.bundled import FOLDER, NAME

    folder = FOLDER if path == NAME else Path(path)
    if plain_files.is_file(folder / "config.yaml"):
        return _run(folder)
    if plain_files.is_file(folder / MANIFEST) or plain_files.is_file(folder / PEFT):
        return _adapter(folder)
    if plain_files.is_file(folder / "config.json"):
        return _base(folder)
    inside = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else None
    raise FileError(
        f"{path} is no run, adapter or base." if folder.exists() else f"{path} is not there.",
        **({"found": inside} if inside else {}),
        fix="name a folder with config.yaml, adapter_config.json, manifest.json or config.json",
    )


def _run(folder: Path) -> dict[str, Any]:
    from lorica.recipe.yaml_file import read_yaml

    settings = read_yaml(folder / "config.yaml").data
    steps = [
        event["step"]
        for event in _events(folder / "events.jsonl")
        if type(event.get("step")) is int
    ]
    ended = plain_files.is_file(folder / "results.json")
    checkpoints = [n for n in plain_files.names_in(folder / "checkpoints") if n[0] != "."]
    state = "finished" if ended else f"not finished; go on with: lorica train --resume {folder}"
    found = {
        "what": "run",
        "folder": str(folder),
        "state": state,
        "steps": max(steps, default=0),
        "versions": settings.pop("versions", {}),
        "settings": settings,
        "figures": _json(folder / "results.json") if ended else {},
        "checkpoints": checkpoints,
    }
    if plain_files.is_folder(folder / "adapter"):
        found["adapter"] = _adapter(folder / "adapter")
    return found


def _adapter(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"what": "adapter", "folder": str(folder)}
    if plain_files.is_file(folder / MANIFEST):
        manifest = _json(folder / MANIFEST)
        keys = ("method", "targets", "labels", "seed", "base", "versions")
        found |= {key: manifest[key] for key in keys if manifest.get(key) is not None}
        for kind in ("weights", "tokenizer_parts"):  # digests say nothing to a reader
            if isinstance(found.get("base"), dict):
                found["base"].pop(kind, None)
        files = manifest.get("files", {})
        if not isinstance(files, dict) or not all(isinstance(v, dict) for v in files.values()):
            raise FileError(
                f"{folder / MANIFEST} has no digests of its files.", fix="copy the folder anew"
            )
        changed = [
            n
            for n, noted in files.items()
            if not _same(folder / plain_files.check_name(n, folder / MANIFEST), noted)
        ]
        found["files"] = f"not as saved: {listed(changed)}" if changed else "as they were saved"
    else:
        settings = _json(folder / PEFT)
        found["base"] = {"path": settings.pop("base_model_name_or_path", None)}
        found["settings"] = {key: value for key, value in settings.items() if value is not None}
        found["files"] = "written by PEFT, without a manifest: the base cannot be verified"
    if plain_files.is_file(folder / WEIGHTS):
        found |= _tensors([folder / WEIGHTS])
    return found


def _base(folder: Path) -> dict[str, Any]:
    config = _json(folder / "config.json")
    keys = (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    found: dict[str, Any] = {"what": "base", "folder": str(folder)}
    found["architecture"] = listed(
        names if isinstance(names := config.get("architectures"), list) else []
    )
    found |= {key: config[key] for key in keys if key in config}
    tokenizer = folder / "tokenizer_config.json"
    templates = plain_files.is_file(tokenizer) and "chat_template" in _json(tokenizer)
    found["tokenizer"] = any(map(plain_files.is_file, (folder / "tokenizer.json", tokenizer)))
    found["chat_template"] = templates or plain_files.is_file(folder / "chat_template.jinja")
    return found | _tensors(sorted(folder.glob("*.safetensors")))


def _tensors(files: list[Path]) -> dict[str, Any]:
    """Counts from the headers of safetensors files."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    names, values, kinds = 0, 0, set()
    for file in filter(plain_files.is_file, files):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    names += 1
                    values += prod(part.get_shape())
                    kinds.add(part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise FileError(f"{file} is damaged: {error}.", fix="copy the file anew") from None
    size = sum(file.stat().st_size for file in files)
    return {"tensors": names, "values": values, "dtypes": sorted(kinds), "bytes": size}


def _same(file: Path, noted: Mapping[str, Any]) -> bool:
    if not plain_files.is_file(file):
        return False
    with plain_files.open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == noted.get("sha256")


def _json(file: Path) -> dict[str, Any]:
    return strict_json.read(file, finite=False)


def _events(file: Path) -> list[dict[str, Any]]:
    """The lines of an event log; what a kill cut short is passed over."""
    found = []
    for line in plain_files.read_lines(file) if plain_files.is_file(file) else ():
        with suppress(ValueError):
            found.append(strict_json.parse(line))
    return [event for event in found if isinstance(event, dict)]


def _brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a person reads: of an evaluation, whose figures stand beside it, only its rows."""
    figures = dict(found.get("figures") or {})
    if isinstance(evaluation := figures.get("evaluation"), Mapping):
        figures["evaluation"] = {k: evaluation.get(k) for k in ("data", "rows", "lines")}
    return {**found, "figures": figures}


def _rows(found: Mapping[str, Any], depth: int = 0) -> list[str]:
    width, rows = max(map(len, found), default=0), []
    for key, value in found.items():
        if isinstance(value, Mapping):
            inner = _rows(value, depth + 1)
            rows += [f"{'  ' * depth}{key}", *inner] if inner else []
        elif value not in (None, [], ""):
            text = _text(value)
            if isinstance(value, list):
                text = f"\n{'  ' * (depth + 1)}".join(["", *map(str, value)])
                text = listed(value, 8) if len(str(value)) < 100 else text
            rows.append(f"{'  ' * depth}{key:<{width}}  {text}".rstrip(" "))
    return rows


def _text(value: Any) -> str:
    """One value as a person reads it: thousands parted, few digits, short hashes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value[:12]}..." if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)
