"""An adapter of another tool under PEFT's names, and the files that it is read from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lorica import plain_files, strict_json
from lorica.errors import ConfigError, FileError
from lorica.formats import commit
from lorica.formats.peft.layout import Layout
from lorica.recipe.yaml_file import parse_yaml


@dataclass(frozen=True)
class Translation:
    """What a folder of another tool holds.

    tool: the tool and its layout, for a reader. tensors: under PEFT's names. config: the keys of
    PEFT's adapter_config.json. notices: what the folder leaves open, and what was changed.
    layout: None: the one of the config's peft_type.
    """

    tool: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    notices: list[str] = field(default_factory=list)
    layout: Layout | None = None


class FolderFiles:
    """Reads the files of one adapter folder, and notes the SHA-256 of each by its name.

    max_bytes: read tensors into memory, at most so many bytes of a file. None: they are mapped,
        and change if someone writes into the file.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None):
        self.folder = folder
        self.digests: dict[str, str] = {}
        self._max_bytes = max_bytes

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file. Raises: FileError if it is damaged."""
        path = self.folder / name
        if self._max_bytes is None:
            self.digests[name] = str(commit.digest(path)["sha256"])
            return commit.read_tensors(path)
        return commit.parse_tensors(self._read(name, self._max_bytes), path)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object. Raises: FileError if it is damaged."""
        return strict_json.parse_object(self._read(name), self.folder / name)

    def yaml(self, name: str) -> Mapping[str, Any]:
        """A YAML mapping; values with tags of Python are left out. Raises: FileError."""
        path = self.folder / name
        try:
            return parse_yaml(path, self._read(name).decode(), fix="copy the folder again").data
        except (ConfigError, UnicodeDecodeError) as error:
            raise FileError(
                f"{path} cannot be read: {error}", fix="copy the folder again"
            ) from None

    def _read(self, name: str, most: int = plain_files.MAX_TEXT) -> bytes:
        data = plain_files.read_bytes(self.folder / name, most)
        self.digests[name] = hashlib.sha256(data).hexdigest()
        return data
