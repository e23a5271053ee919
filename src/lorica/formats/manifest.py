"""manifest.json of an adapter folder: its form, the method in it, and whether the files agree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch import Tensor

from lorica.core.adapter import Method
from lorica.core.port import Spec
from lorica.core.targets import Targets
from lorica.data.classes import class_names_fault
from lorica.errors import ConfigError, FileError, listed
from lorica.recipe.values import is_valid, parse_strict

MANIFEST, FORMAT = "manifest.json", 1
WEIGHTS = "adapter_model.safetensors"
FLOATS = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")
PARTS: dict[str, Any] = {
    "method": dict[str, Any],
    "targets": dict[str, Any],
    "base": dict[str, Any],
    "files": dict[str, dict[str, Any]],
    "seed": Annotated[int, Field(ge=0, lt=2**62)],
    "dtype": str | None,
    "labels": list[str] | None,
    "versions": dict[str, str],
}
"""Parts of a manifest and their types. Only the first four must be there."""
BASE = {"path": str, "architecture": str, "quantisation": str | None, "double_quantisation": bool}
NOTE = {"bytes": Annotated[int, Field(ge=0)], "sha256": str}


def check_format(manifest: dict[str, Any], path: Path) -> None:
    """Raises: FileError if a part of a manifest is missing, or of another type."""
    file = path / MANIFEST
    form = manifest.get("format", FORMAT)
    if type(form) is not int or form != FORMAT:
        raise FileError(
            f"{file} has format {form!r:.80}; this lorica reads {FORMAT}.",
            fix="install the release that wrote it",
            versions=str(manifest.get("versions"))[:200],
        )
    needed = list(PARTS)[:4]
    wrong = [
        part
        for part in PARTS
        if (part in manifest or part in needed) and not is_valid(PARTS[part], manifest.get(part))
    ]
    if wrong or "format" not in manifest:
        raise FileError(
            f"{file} lacks {', '.join(wrong) or 'format'}, or has it in another form.",
            fix="copy the folder anew",
        )
    _check_labels(manifest.get("labels"), file)
    base = manifest["base"]
    if odd := [key for key, kind in BASE.items() if key in base and not is_valid(kind, base[key])]:
        raise FileError(
            f"{file} has a base whose {listed(odd)} is of another type.", fix="copy the folder anew"
        )
    files = manifest["files"]
    bad = [
        name
        for name, note in files.items()
        if not all(is_valid(kind, note.get(key)) for key, kind in NOTE.items())
    ]
    if bad or WEIGHTS not in files:
        raise FileError(
            f"{file} has no digest of {listed(bad or [WEIGHTS])}.", fix="copy the folder anew"
        )


def _check_labels(labels: list[str] | None, file: Path) -> None:
    if labels is not None and (fault := class_names_fault(labels)):
        raise FileError(
            f"{file} has labels that are not the names of classes: {fault}.",
            labels=listed(map(repr, labels), 12),
            fix="copy the folder anew",
        )


def spec_from(manifest: dict[str, Any], path: Path) -> Spec:
    """The Spec that a manifest holds. Raises: FileError if it is not one of ours."""
    try:
        settings = dict(manifest["method"])
        method = parse_strict(Method.named(settings.pop("name")), settings)
        return Spec(method, parse_strict(Targets, manifest["targets"]), manifest.get("seed", 0))
    except ValidationError as error:
        wrong = {
            ".".join(map(str, e["loc"])) or "method": f"{e['input']!r:.80}: {e['msg']}"
            for e in error.errors()[:8]
        }
        raise FileError(
            f"{path / MANIFEST} is damaged.", **wrong, fix="copy the folder anew"
        ) from None
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path / MANIFEST} is damaged.", why=error) from None


def check_agrees(config: Mapping[str, Any], written: Mapping[str, Any], path: Path) -> None:
    """Raises: FileError if adapter_config.json is not what the manifest's adapter is written as.

    config: of the folder. written: what `save` writes of the adapter that the manifest describes;
    keys of other writers are not compared.
    """
    own = {"base_model_name_or_path", "inference_mode", "task_type"}  # others may set them
    differ = {
        key: f"{config.get(key)!r:.80} in adapter_config.json, {value!r:.80} by manifest.json"
        for key, value in written.items()
        if key not in own and key in config and _plain(config[key]) != _plain(value)
    }
    if differ:
        raise FileError(
            f"the files of {path} contradict each other.",
            **differ,
            fix=f"copy the folder anew, or delete {MANIFEST} if adapter_config.json is right",
        )


def _plain(value: Any) -> Any:
    """A value as it compares: the order of names says nothing, and neither does none of them."""
    if isinstance(value, list | tuple):
        return sorted(map(str, value)) or None
    return None if value in ("", {}) else value


def check_floats(file: Mapping[str, Tensor], source: Path) -> None:
    """Raises: FileError if a tensor of a PEFT file is not of floating-point numbers."""
    odd = [
        f"{key} ({str(tensor.dtype).removeprefix('torch.')})"
        for key, tensor in file.items()
        if str(tensor.dtype) not in FLOATS
    ]
    if odd:
        raise FileError(
            f"{source} has tensors that are not of floats.",
            tensors=listed(odd),
            fix="save the adapter again in float32 or bfloat16",
        )
