"""Read an adapter folder, ours or another tool's, without a model.

Reading is strict: a changed byte, an unknown setting, or a tensor that is not of floats is a
FileError that names it. Whether the tensors fit a model is checked when the file is attached, see
formats/attach.py. Servers, exporters and planners read without a model.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lorica import plain_files, strict_json
from lorica.base.classifier import KIND
from lorica.base.fingerprint import Fingerprint
from lorica.core.bank import Spec
from lorica.data.prompt_format import PromptFormat
from lorica.errors import FileError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import CONFIG, WEIGHTS, adapter_folder
from lorica.formats.foreign.translate import translate
from lorica.formats.foreign.translation import FolderFiles
from lorica.formats.foreign.weights import weights_files
from lorica.formats.manifest import Manifest, read_manifest
from lorica.formats.peft.layout import Layout
from lorica.formats.peft.layouts import layout_of
from lorica.formats.peft.whole_layers import unwrapped

FLOATS = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as its folder holds it, validated.

    spec: method, targets and seed. tensors: on the CPU, under the names of the file; those of
        other tools under PEFT's names. weights: the file of the tensors, the first of shards.
    manifest: None for a folder that another tool wrote.
    layout, config: how PEFT names the tensors, and its settings; None and {} for a method that
        PEFT does not know.
    digest: sha256 of tensors and settings: equal for equal adapters, whatever folder they are in.
    tool: that wrote the folder, and its layout. notices: what the folder leaves open, and what was
        changed in reading.
    """

    folder: Path
    weights: Path
    spec: Spec
    tensors: Mapping[str, Tensor]
    manifest: Manifest | None
    layout: Layout | None
    config: Mapping[str, Any]
    digest: str
    tool: str = "lorica"
    notices: tuple[str, ...] = ()

    @property
    def base(self) -> Fingerprint | None:
        """The base that the adapter was trained on; None: PEFT does not record it."""
        return None if self.manifest is None else self.manifest.base

    @property
    def base_path(self) -> str | None:
        """Where the base was loaded from: a folder, a hub id, or "bundled"."""
        path = self.config.get("base_model_name_or_path") if self.base is None else self.base.path
        return path or None

    @property
    def labels(self) -> list[str] | None:
        """Classes in the order of the outputs; None: not a classifier, or not recorded."""
        return None if self.manifest is None else self.manifest.labels

    @property
    def prompt_format(self) -> PromptFormat | None:
        """How the rows of the training were written as text; None: not recorded."""
        return None if self.manifest is None else self.manifest.prompt_format

    @property
    def task(self) -> str:
        """PEFT's task_type: "CAUSAL_LM", "SEQ_CLS", or one that lorica has no model for."""
        if self.base is None:
            return self.config.get("task_type") or "CAUSAL_LM"
        return "SEQ_CLS" if KIND in self.base.architecture else "CAUSAL_LM"

    def tensors_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors whose name is one of `names`, whatever PEFT writes before it."""
        ends = tuple(f".{name}" for name in names)
        return {key: t for key, t in self.tensors.items() if f".{key}".endswith(ends)}


def read(path: str | Path, *, max_bytes: int | None = None) -> AdapterFile:
    """The adapter in folder `path`, or of the run in `path`.

    max_bytes: read the weights into memory, at most so many bytes, and check the digest of what was
        read. None: the tensors are mapped: they change if someone writes into the file.

    Raises: FileError if the folder is damaged, or holds what lorica does not read.
    """
    folder = adapter_folder(path)
    files = weights_files(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return _read_foreign(folder, files, max_bytes)
    weights = folder / WEIGHTS
    commit.check_digests(folder, manifest.files)
    tensors, sha = _read_weights(weights, max_bytes)
    digests = {name: str(digest["sha256"]) for name, digest in manifest.files.items()}
    if sha not in (None, digests[WEIGHTS]):
        raise _changed(weights)
    layout, config = None, dict[str, Any]()
    if CONFIG in manifest.files:
        check_floats(tensors, weights)
        config, sha = _read_config(folder / CONFIG)
        if sha != digests[CONFIG]:
            raise _changed(folder / CONFIG)
        layout = layout_of(config, str(folder))
        layout.check_supported(config, str(folder))
    return _file(folder, manifest.spec, tensors, manifest, layout, config, digests)


def _read_weights(path: Path, max_bytes: int | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the sha256 of the file if it was read into memory."""
    if max_bytes is None:
        return commit.read_tensors(path), None
    data = plain_files.read_bytes(path, max_bytes)
    return commit.parse_tensors(data, path), hashlib.sha256(data).hexdigest()


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, and the sha256 of its file."""
    data = plain_files.read_bytes(path)
    return strict_json.parse_object(data, path), hashlib.sha256(data).hexdigest()


def _changed(path: Path) -> FileError:
    return FileError(f"{path} was changed while it was read.", fix="load the folder again")


def _read_foreign(folder: Path, weights: list[Path], max_bytes: int | None) -> AdapterFile:
    """A folder without a manifest: the method and targets follow from the settings in it."""
    files = FolderFiles(folder, max_bytes)
    adapter = translate(files, weights)
    check_floats(adapter.tensors, weights[0])
    tensors, config = unwrapped(adapter.tensors), adapter.config
    layout = adapter.layout or layout_of(config, str(folder))
    spec = layout.spec(config, tensors, str(folder))
    file = _file(folder, spec, tensors, None, layout, config, files.digests)
    notices = tuple(adapter.notices)
    return replace(file, weights=weights[0], tool=adapter.tool, notices=notices)


def _file(
    folder: Path,
    spec: Spec,
    tensors: dict[str, Tensor],
    manifest: Manifest | None,
    layout: Layout | None,
    config: dict[str, Any],
    digests: dict[str, str],
) -> AdapterFile:
    """digests: sha256 of each file, by its name."""
    what = {
        "files": digests,
        "method": {"name": spec.method.name, **asdict(spec.method)},
        "targets": asdict(spec.targets),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return AdapterFile(
        folder,
        folder / WEIGHTS,
        spec,
        MappingProxyType(tensors),
        manifest,
        layout,
        MappingProxyType(config),
        digest,
    )


def check_floats(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises: FileError if a tensor of a PEFT file is not of floating-point numbers."""
    wrong = [
        f"{key} ({str(tensor.dtype).removeprefix('torch.')})"
        for key, tensor in tensors.items()
        if str(tensor.dtype) not in FLOATS
    ]
    if wrong:
        raise FileError(
            f"{source} has tensors that are not of floats.",
            tensors=listed(wrong),
            fix="save the adapter again in float32 or bfloat16",
        )
